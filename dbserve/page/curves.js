// Loss, throughput and memory of every task over its steps: the stored history, then what the stream tells.

import { lineChart } from "/assets/chart.js";
import { h } from "/assets/dom.js";
import { bytes, count, significant } from "/assets/format.js";
import { read } from "/assets/session.js";
import { seriesClass, seriesDash } from "/assets/series.js";
import { taskTitle } from "/assets/words.js";

const POINTS = 200; // asked for
const WEIGHT = 0.25; // of the last report's loss, where it continues a curve
const MOST = 600; // kept of a task; then every other one is dropped

const CHARTS = [
  { field: "loss", title: "Training loss", unit: "", format: significant, scale: "log" },
  { field: "samples_per_second", title: "Throughput", unit: "samples/s", format: count, scale: "zero" },
  { field: "memory_bytes", title: "Memory in training", unit: "bytes", format: bytes, scale: "zero" },
];

/** {node, predicted (bytes by task, once the history is here), load(), update(view, memory)} */
export function curves({ here, signal }) {
  const predicted = new Map(); // task name -> bytes
  const points = new Map(); // task name -> [{step, loss, samples_per_second, memory_bytes}], ascending
  const hidden = new Set(); // names that the legend has switched off, in all charts
  const shared = { at: null, redraw: () => charts.forEach(({ chart }) => chart.draw()) };
  const charts = CHARTS.map((kind) => ({ kind, chart: lineChart({ ...kind, hidden, shared }) }));
  const node = h("div", { class: "charts" }, charts.map(({ chart }) => chart.node));
  let view = null;
  let memory = null;

  const load = () => read(`${here}/metrics?points=${POINTS}`, { signal }).then((history) => {
    for (const { name, points: past, memory_predicted: planned } of history.tasks) {
      if (planned) predicted.set(name, planned);
      const since = points.get(name) ?? [];
      const last = past.at(-1)?.step ?? -1;
      points.set(name, [...past, ...since.filter((point) => point.step > last)]);
    }
    draw();
  }, () => {}); // without its history, a curve begins now
  load();

  function draw() {
    if (view === null) return;
    const trained = view.tasks.filter((task) => task.total > 0);
    const total = Math.max(1, ...trained.map((task) => task.total));
    for (const { kind, chart } of charts) {
      chart.update({
        end: total,
        reference: kind.field === "memory_bytes" && memory.whole ? { value: memory.whole, label: "end-to-end, predicted" } : null,
        series: trained.map((task) => ({
          name: task.name,
          title: taskTitle(task.name),
          look: seriesClass(task),
          dash: seriesDash(task),
          points: (points.get(task.name) ?? [])
            .map((point) => [point.step, point[kind.field]])
            .filter(([, value]) => value !== null && value !== undefined && Number.isFinite(value)),
        })),
      });
    }
  }

  return {
    node,
    predicted,
    load,
    update(next, against) {
      view = next;
      memory = against;
      for (const task of next.tasks) append(points, task);
      draw();
    },
  };
}

/** What a running task tells now; a step that is repeated replaces what was known from there on. */
function append(points, task) {
  if (task.status !== "running" || !task.total || !task.step) return;
  let past = points.get(task.name) ?? [];
  const before = past.findLast((point) => point.step < task.step)?.loss ?? null;
  const told = {
    step: task.step,
    loss: smoothed(before, task.loss),
    samples_per_second: task.samples_per_second,
    memory_bytes: task.memory_peak,
  };
  if (past.length && past.at(-1).step >= task.step) past = past.filter((point) => point.step < task.step);
  if (past.length > MOST) past = past.filter((_, index) => index % 2 === 0 || index === past.length - 1);
  points.set(task.name, [...past, told]);
}

/** A report is a mean over a second's steps, the stored points are means over more: beside them it would look like a spike. */
function smoothed(before, loss) {
  return before === null || loss === null || !Number.isFinite(loss) ? loss : before + WEIGHT * (loss - before);
}
