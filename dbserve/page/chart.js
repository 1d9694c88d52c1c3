// A line chart over steps, drawn in SVG. Its legend is its readout: beside each name stands the value under the cursor.

import { h, keyed, mark, say, svg } from "/assets/dom.js";
import { NONE, count } from "/assets/format.js";
import { scaleOf, stepScale } from "/assets/scale.js";

const HEIGHT = 220;
const MARGIN = { top: 10, right: 12, bottom: 30, left: 54 };
const ROWS = 12; // of the table

/**
 * {node, update({series, end, reference}), draw()}. A series: {name, title, look, dash, points: [[step, value]]}.
 * `shared.at` is the step under the cursor of any chart that shares it; `hidden` the names switched off in all of them.
 */
export function lineChart({ title, unit, format, scale, hidden, shared }) {
  let data = { series: [], end: 1, reference: null };
  let width = 0;
  const readAt = h("span", { class: "at" });
  const drawing = svg("svg", { role: "img", height: HEIGHT, "aria-hidden": "true" });
  const spoken = h("p", { class: "unseen", "aria-live": "polite" });
  const area = h("div", {
    class: "plot", tabindex: "0", role: "group",
    "aria-label": `${title} by step. Left and right arrow keys read values; the table below has them as text.`,
    pointermove: (event) => point(stepAt(event.clientX)), pointerleave: () => point(null),
    keydown, blur: () => point(null),
  }, drawing);
  const legend = h("ul", { class: "legend" });
  const drawLegend = keyed(legend, (series) => series.name, legendItem);
  const table = h("table");
  const details = h("details", { class: "as-table", toggle: () => fillTable() }, h("summary", {}, "As a table"),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${title}, as a table` }, table));
  const node = h("figure", { class: "chart" },
    h("figcaption", {}, h("strong", {}, title), unit ? h("span", { class: "unit" }, unit) : null, readAt),
    area, legend, spoken, details);
  new ResizeObserver(([entry]) => {
    if (Math.abs(entry.contentRect.width - width) < 1) return;
    width = entry.contentRect.width;
    draw();
  }).observe(area);

  function legendItem() {
    const value = h("span", { class: "value" });
    const swatch = svg("svg", { width: 18, height: 8, "aria-hidden": "true" }, svg("line", { x1: 0, x2: 18, y1: 4, y2: 4 }));
    const name = h("span", {});
    let mine = null;
    const button = h("button", { type: "button", click: () => toggle(mine) }, swatch, name, value);
    return [h("li", {}, button), (series) => {
      mine = series.name;
      mark(swatch.firstChild, "class", `line ${series.look}`);
      mark(swatch.firstChild, "stroke-dasharray", series.dash || null);
      say(name, series.title);
      const read = reading(series);
      say(value, read ? format(read[1]) : NONE);
      mark(button, "aria-pressed", String(!hidden.has(series.name)));
    }];
  }

  function toggle(name) {
    if (!hidden.delete(name)) hidden.add(name);
    shared.redraw();
  }

  const visible = () => data.series.filter((series) => !hidden.has(series.name) && series.points.length);

  /** The point of a series that is read now: the one nearest to the cursor, else the last. */
  function reading({ points }) {
    return shared.at === null ? points.at(-1) : nearest(points, shared.at);
  }

  function stepAt(clientX) {
    const box = area.getBoundingClientRect();
    const share = (clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right);
    return Math.max(0, Math.min(1, share)) * data.end;
  }

  function point(step) {
    if (shared.at === step) return;
    shared.at = step;
    shared.redraw();
  }

  function keydown(event) {
    const steps = [...new Set(visible().flatMap(({ points }) => points.map(([step]) => step)))].sort((a, b) => a - b);
    if (!steps.length) return;
    const here = shared.at === null ? steps.length - 1 : steps.findLastIndex((step) => step <= shared.at);
    const stride = event.shiftKey ? 10 : 1;
    const moves = { ArrowLeft: here - (shared.at === null ? 0 : stride), ArrowRight: here + stride, Home: 0, End: steps.length - 1 };
    if (event.key === "Escape") return point(null);
    if (!(event.key in moves)) return;
    event.preventDefault();
    point(steps[Math.max(0, Math.min(steps.length - 1, moves[event.key]))]);
    say(spoken, `Step ${count(shared.at)}: ${visible().map((series) => `${series.title} ${format(reading(series)[1])}`).join(", ")}`);
  }

  function draw() {
    const shown = visible();
    drawLegend(data.series.filter((series) => series.points.length));
    say(readAt, shared.at === null ? "latest" : `step ${count(shared.at)}`);
    if (!width) return;
    mark(drawing, "viewBox", `0 0 ${width} ${HEIGHT}`);
    mark(drawing, "width", width);
    const inner = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: HEIGHT - MARGIN.bottom };
    const values = shown.flatMap(({ points }) => points.map(([, value]) => value));
    const x = stepScale(data.end, inner);
    const parts = [];
    for (const tick of x.ticks) {
      parts.push(svg("text", { class: "tick", x: x.at(tick), y: HEIGHT - 14, "text-anchor": tick === 0 ? "start" : "middle" }, count(tick)));
    }
    parts.push(svg("text", { class: "tick", x: inner.right, y: HEIGHT - 1, "text-anchor": "end" }, "step"));
    if (!values.length) {
      parts.push(svg("line", { class: "axis", x1: inner.left, x2: inner.right, y1: inner.bottom, y2: inner.bottom }),
        svg("text", { class: "nothing", x: (inner.left + inner.right) / 2, y: (inner.top + inner.bottom) / 2, "text-anchor": "middle" },
          data.series.length && hidden.size ? "Every line is switched off" : "Nothing measured yet"));
    } else {
      const y = scaleOf(scale, data.reference ? [...values, data.reference.value] : values, inner);
      for (const tick of y.ticks) {
        parts.push(svg("line", { class: "grid", x1: inner.left, x2: inner.right, y1: y.at(tick), y2: y.at(tick) }),
          svg("text", { class: "tick", x: inner.left - 8, y: y.at(tick) + 4, "text-anchor": "end" }, format(tick)));
      }
      if (data.reference) {
        const at = y.at(data.reference.value);
        parts.push(svg("line", { class: "reference", x1: inner.left, x2: inner.right, y1: at, y2: at }),
          svg("text", { class: "tick", x: inner.right, y: at - 5, "text-anchor": "end" }, data.reference.label));
      }
      for (const { points, look, dash } of shown) {
        const path = points.map(([step, value], index) => `${index ? "L" : "M"}${x.at(step).toFixed(1)} ${y.at(value).toFixed(1)}`).join("");
        parts.push(svg("path", { class: `line ${look}`, d: path, "stroke-dasharray": dash || null }));
      }
      if (shared.at !== null) parts.push(svg("line", { class: "cursor", x1: x.at(shared.at), x2: x.at(shared.at), y1: inner.top, y2: inner.bottom }));
      for (const series of shown) {
        const [step, value] = reading(series);
        if (shared.at !== null || series.points.length === 1) parts.push(svg("circle", { class: `spot ${series.look}`, cx: x.at(step), cy: y.at(value), r: 3.5 }));
      }
    }
    drawing.replaceChildren(...parts);
  }

  function fillTable() {
    if (!details.open) return;
    const steps = [...new Set(data.series.flatMap(({ points }) => points.map(([step]) => step)))].sort((a, b) => a - b);
    const stride = Math.max(1, Math.ceil(steps.length / ROWS));
    const chosen = steps.filter((_, index) => (steps.length - 1 - index) % stride === 0);
    table.replaceChildren(
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Step"), data.series.map(({ title: name }) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, chosen.map((step) => h("tr", {}, h("th", { scope: "row" }, count(step)),
        data.series.map(({ points }) => h("td", {}, within(points, step, format)))))));
  }

  return {
    node,
    draw,
    update(next) {
      data = next;
      draw();
      fillTable();
    },
  };
}

/** The point whose step is nearest; points ascend. */
function nearest(points, step) {
  let best;
  for (const point of points) {
    if (best && Math.abs(point[0] - step) > Math.abs(best[0] - step)) break;
    best = point;
  }
  return best;
}

/** The last value up to a step, where the series has come that far. */
function within(points, step, format) {
  const last = points.at(-1);
  if (!last || step > last[0]) return "";
  return format(points.findLast(([at]) => at <= step)?.[1]);
}
