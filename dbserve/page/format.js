// Figures as people read them. What is not known is an en dash, never 0.

export const NONE = "–";
const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

/** 1234567 -> "1,234,567" */
export function count(value) {
  return known(value) ? Math.round(value).toLocaleString("en-GB") : NONE;
}

/** Three significant digits: 0.512, 12.3, 1,230 */
export function significant(value) {
  if (!known(value)) return NONE;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(2).replace("e+", "e");
  return size >= 1000 ? count(value) : Number(value.toPrecision(3)).toString();
}

/** Decimal units, as memory is sold: 12.3 MB */
export function bytes(value) {
  if (!known(value)) return NONE;
  let unit = 0;
  while (Math.abs(value) >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit ? Number(value.toPrecision(3)) : value} ${UNITS[unit]}`;
}

/** A share of one as per cent. */
export function percent(share) {
  if (!known(share)) return NONE;
  const value = 100 * share;
  return `${value >= 10 || value === 0 ? Math.round(value) : value.toFixed(1)} %`;
}

/** Seconds as the two units that matter: 42 s, 3 min 20 s, 2 h 5 min, 3 d 4 h */
export function duration(seconds) {
  if (!known(seconds)) return NONE;
  const whole = Math.max(0, Math.round(seconds));
  const steps = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = steps.findIndex(([, size]) => whole >= size);
  if (first < 0) return "0 s";
  const [unit, size] = steps[first];
  const major = `${Math.floor(whole / size)} ${unit}`;
  const next = steps[first + 1];
  const minor = next ? Math.floor((whole % size) / next[1]) : 0;
  return minor ? `${major} ${minor} ${next[0]}` : major;
}

/** How long ago, by the server's clock: "just now", "42 s ago", "3 min ago" */
export function ago(at, now) {
  const seconds = (now - Date.parse(at)) / 1000;
  if (!known(seconds)) return NONE;
  if (seconds < 5) return "just now";
  return `${duration(seconds).split(" ").slice(0, 2).join(" ")} ago`;
}

/** Time of day, with the date where it was another day. */
export function clock(at, now = Date.now()) {
  const moment = new Date(at);
  const time = moment.toLocaleTimeString("en-GB");
  return moment.toDateString() === new Date(now).toDateString()
    ? time
    : `${moment.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} ${time}`;
}

export function moment(at) {
  return new Date(at).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });
}
