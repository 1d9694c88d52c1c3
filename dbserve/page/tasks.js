// The tasks of a job: what each does, how far it is, and what it holds against end-to-end training.

import { h, keyed, mark, say, table } from "/assets/dom.js";
import { NONE, bytes, count, duration, percent, significant } from "/assets/format.js";
import { bar, pill } from "/assets/parts.js";
import { seriesClass } from "/assets/series.js";
import { conditionMeans, layerRange, noiseRange, reasonMeans, taskTitle, why } from "/assets/words.js";

const MOVING = new Set(["running", "pausing", "cancelling"]);

/** What memory is compared with: bytes as predicted (by task) and of end-to-end training, and the largest block's share. */
export function memoryOf(view, predicted) {
  const largest = Math.max(0, ...view.blocks.map((block) => predicted.get(block.name) ?? 0));
  const whole = predicted.get("end_to_end") ?? (largest && view.memory_ratio ? largest / view.memory_ratio : null);
  const measuredWhole = view.tasks.find((task) => task.kind === "end_to_end")?.memory_peak ?? null;
  const peaks = view.blocks.map((block) => block.memory_peak);
  const all = measuredWhole && peaks.length && peaks.every(Boolean);
  return { predicted, whole, measuredWhole, ratio: view.memory_ratio, measured: all ? Math.max(...peaks) / measuredWhole : null };
}

/** A table of tasks: {node, update(view, blocks, memory)}. */
export function tasks() {
  const node = table("tasks", ["Task", "Status", "Progress", "Loss", "Samples/s", "Memory against end-to-end", "Node"]);
  const draw = keyed(node, ({ task }) => task.name, ({ task }) => rows(task), node.tHead);
  return {
    node,
    update(view, blocks, memory) {
      draw(view.tasks.map((task) => ({ task, block: blocks.get(task.name), memory })));
    },
  };
}

/** A task: a row of figures, and under it, where there is something to say, a row of words. */
function rows(first) {
  const trains = first.total > 0;
  const [status, setStatus] = pill();
  const [progress, setProgress] = bar((task) => taskTitle(task.name));
  const [memory, setMemory] = memoryBar();
  const attempt = h("span", { class: "attempt" });
  const about = h("span", { class: "about" });
  const left = h("span", { class: "steps" });
  const loss = h("td", { class: "number loss", role: "cell", "data-label": "Loss" });
  const speed = h("td", { class: "number speed", role: "cell", "data-label": "Samples/s" });
  const place = h("td", { class: "place", role: "cell", "data-label": "Node" });
  const wrong = h("ul", { class: "conditions" });
  const drawWrong = keyed(wrong, (text) => text, (text) => [h("li", {}, text), () => {}]);
  const words = h("tr", { class: "said", role: "row" }, h("td", { colspan: 7, role: "cell", "aria-colspan": 7 }, wrong));
  const node = h("tbody", { role: "rowgroup", "data-task": first.name }, h("tr", { role: "row" },
    h("th", { scope: "row", role: "rowheader", class: "task" },
      h("span", { class: `swatch ${trains ? seriesClass(first) : "none"}`, "aria-hidden": "true" }), h("span", { class: "name" }, taskTitle(first.name)), about),
    h("td", { class: "status", role: "cell" }, status, attempt),
    h("td", { class: "done", role: "cell" }, trains ? [progress, left] : null),
    loss, speed, h("td", { class: "memory", role: "cell" }, trains ? memory : null), place), words);

  return [node, ({ task, block, memory }) => {
    setStatus(task.status);
    mark(node, "data-idle", trains && task.loss === null && task.memory_peak === null);
    // pauses and preemptions make attempts, too, that no budget counts
    say(attempt, `attempt ${task.attempt}${task.attempt <= task.max_attempts ? ` of ${task.max_attempts}` : ""}`);
    attempt.hidden = task.attempt === 1 && (!trains || task.status === "pending");
    if (trains) setProgress(task);
    say(left, MOVING.has(task.status) && task.eta_seconds !== null ? `${duration(task.eta_seconds)} left` : "");
    say(about, block ? `${layerRange(block.layers)} · ${noiseRange(block.sigma_min, block.sigma_max)}` : "");
    say(loss, trains ? significant(task.loss) : "");
    say(speed, trains ? count(task.status === "running" ? task.samples_per_second : null) : "");
    say(place, task.node ?? "");
    setMemory(task, memory);
    const lines = task.conditions.map(conditionMeans);
    const because = why(task);
    if (because && task.status !== "succeeded") lines.push(because);
    if (task.retry_at) lines.push(`tried again at ${new Date(task.retry_at).toLocaleTimeString("en-GB")}`);
    const lost = Object.entries(block?.restarts ?? {}).map(([reason, times]) => `${times} × ${reasonMeans(reason)}`);
    if (lost.length && task.attempt > 1) lines.push(`lost so far: ${lost.join(", ")}`);
    drawWrong(lines);
    words.hidden = !lines.length;
  }];
}

/** Measured bytes as a bar, the prediction as a mark on it; the track is what end-to-end training needs. */
function memoryBar() {
  const fill = h("div", { class: "fill" });
  const tick = h("div", { class: "predicted" });
  const track = h("div", { class: "track memory-track", role: "img" }, fill, tick);
  const value = h("span", { class: "percent" });
  const share = h("span", { class: "steps" });
  const node = h("div", { class: "progress" }, track, h("div", { class: "figures" }, value, share));
  return [node, (task, { predicted: planned, whole, measuredWhole }) => {
    const against = measuredWhole ?? whole;
    const predicted = planned.get(task.name) ?? null;
    const room = Math.max(against ?? 0, task.memory_peak ?? 0, predicted ?? 0);
    fill.style.width = room && task.memory_peak ? `${(100 * task.memory_peak) / room}%` : "0";
    tick.hidden = !predicted || !room;
    if (!tick.hidden) tick.style.left = `${(100 * predicted) / room}%`;
    say(value, task.memory_peak ? bytes(task.memory_peak) : NONE);
    const shown = task.memory_peak ?? predicted;
    const parts = [];
    if (against && shown && task.kind !== "end_to_end") parts.push(`${percent(shown / against)} of end-to-end`);
    if (!task.memory_peak && predicted) parts.push("predicted");
    say(share, parts.join(", "));
    mark(track, "aria-label", `${taskTitle(task.name)}: ${bytes(task.memory_peak)} measured, ${bytes(predicted)} predicted, ${bytes(against)} end-to-end`);
    mark(track, "title", `measured ${bytes(task.memory_peak)} · predicted ${bytes(predicted)} (the mark) · end-to-end ${bytes(against)}`);
  }];
}
