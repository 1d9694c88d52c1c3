// Axes: where a value lies, and which round values are marked. Pure.

/** Steps from 0 to `end`, left to right. */
export function stepScale(end, { left, right }) {
  const at = (step) => left + (step / end) * (right - left);
  return { at, ticks: linearTicks(0, end, Math.max(2, Math.floor((right - left) / 90))) };
}

/** Values, bottom to top: "log" where they span more than a factor of ten and are positive, "zero" from 0 upwards. */
export function scaleOf(kind, values, { top, bottom }) {
  let low = Math.min(...values);
  let high = Math.max(...values);
  if (kind === "log" && low > 0 && high / low > 10) {
    const from = Math.log10(low) - 0.03;
    const to = Math.log10(high) + 0.03;
    const at = (value) => bottom - ((Math.log10(value) - from) / (to - from)) * (bottom - top);
    return { at, ticks: logTicks(low, high) };
  }
  if (kind === "zero") low = Math.min(0, low);
  if (high === low) high = low + (Math.abs(low) || 1);
  const room = (high - low) * 0.08;
  const from = kind === "zero" ? low : low - room;
  const to = high + room;
  const at = (value) => bottom - ((value - from) / (to - from)) * (bottom - top);
  return { at, ticks: linearTicks(from, to, 4) };
}

/** About `wanted` round values (1, 2 or 5 times a power of ten apart) between the two. */
export function linearTicks(low, high, wanted) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const ticks = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index += 1) ticks.push(index * step || 0); // never -0
  return ticks;
}

/** Powers of ten, and where there are few, their doubles and halves. */
export function logTicks(low, high) {
  const decades = Math.log10(high / low);
  const factors = decades > 3.5 ? [1] : decades > 1.6 ? [1, 3] : [1, 2, 5];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const factor of factors) {
      const tick = factor * 10 ** power;
      if (tick >= low && tick <= high) ticks.push(tick);
    }
  }
  return ticks;
}
