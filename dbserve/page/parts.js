// What several views are made of.

import { h, mark, say } from "/assets/dom.js";
import { NONE, count } from "/assets/format.js";
import { statusMeans } from "/assets/words.js";

/** A status as a coloured word: [node, update(status)]. */
export function pill() {
  const word = h("span");
  const node = h("span", { class: "pill" }, h("span", { class: "dot", "aria-hidden": "true" }), word);
  return [node, (status) => {
    say(word, status);
    mark(node, "data-status", status);
    mark(node, "title", statusMeans(status));
  }];
}

/** Progress as a bar with its figures: [node, update({step, total, percent, status})]. */
export function bar(label) {
  const fill = h("div", { class: "fill" });
  const track = h("div", { class: "track", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100 }, fill);
  const percent = h("span", { class: "percent" });
  const steps = h("span", { class: "steps" });
  const node = h("div", { class: "progress" }, track, h("div", { class: "figures" }, percent, steps));
  return [node, (progress) => {
    const done = Math.floor(progress.percent);
    fill.style.width = `${progress.percent}%`;
    mark(track, "data-status", progress.status);
    mark(track, "aria-label", `${label(progress)}: progress`);
    mark(track, "aria-valuenow", done);
    mark(track, "aria-valuetext", `${done} per cent`);
    say(percent, `${done} %`);
    say(steps, progress.total ? `${count(progress.step)} / ${count(progress.total)}` : "");
  }];
}

/** A place for what went wrong, read out when it is filled: [node, tell(text or error; "" clears)]. */
export function complaint() {
  const node = h("div", { class: "complaint", role: "alert" });
  return [node, (trouble) => {
    node.replaceChildren();
    node.hidden = !trouble;
    if (!trouble) return;
    if (typeof trouble === "string") return node.append(h("p", {}, trouble));
    node.append(h("p", {}, sentence(trouble.message)));
    const faults = (trouble.faults ?? []).filter((fault) => fault.pointer || trouble.faults.length > 1);
    if (faults.length) {
      node.append(h("ul", {}, faults.map((fault) =>
        h("li", {}, h("code", {}, fault.pointer || "/"), " ", fault.message))));
    }
    if (trouble.status >= 500 && trouble.requestId) node.append(h("p", { class: "soft" }, `Request ${trouble.requestId}`));
  }];
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** A term with its value, and a note: [node, update(value, note)]. */
export function figure(term) {
  const value = h("dd", { class: "value" });
  const note = h("dd", { class: "note" });
  return [h("div", { class: "figure" }, h("dt", {}, term), value, note), (text, more = "") => {
    say(value, text ?? NONE);
    say(note, more);
  }];
}
