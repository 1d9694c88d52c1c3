// What can be done with a job now: as its links say, and never without telling first what will happen.

import { h, mark } from "/assets/dom.js";
import { download, key } from "/assets/session.js";

const ASKED = {
  pause: {
    title: "Pause this job?",
    tells: [
      "Its workers save a last checkpoint, then leave their CPUs and GPUs to others.",
      "Nothing is lost: resumed, it goes on from where it was.",
    ],
    yes: "Pause",
    no: "Keep it running",
  },
  cancel: {
    title: "Cancel this job?",
    tells: [
      "Its workers save a last checkpoint within the job's grace period, then stop for good.",
      "No model is made. It can be tried again later, from its last checkpoints.",
    ],
    yes: "Cancel the job",
    no: "Keep the job",
    force: "Stop at once, without a last checkpoint. Steps since the last saved one are lost.",
  },
};

const BUTTONS = [
  ["resume", "Resume", "primary"],
  ["retry", "Try again", ""],
  ["pause", "Pause", ""],
  ["cancel", "Cancel…", "danger"],
];

/** The buttons of a job: {node, update(view)}. `perform(path)` asks for an action and shows what it answers. */
export function actions({ signal, perform, complain }) {
  let view = null;
  let busy = false;
  const report = h("a", { class: "button primary", target: "_blank", rel: "noopener", click: (event) => fetched(event, "report") }, "Report");
  const model = h("a", { class: "button", click: (event) => fetched(event, "model") }, "Model");
  const buttons = new Map(BUTTONS.map(([name, text, look]) =>
    [name, h("button", { type: "button", class: look, "data-action": name, click: () => start(name) }, text)]));
  const node = h("div", { class: "actions", role: "group", "aria-label": "Actions" }, report, model, [...buttons.values()]);

  async function start(name) {
    const answer = ASKED[name] ? await confirm(ASKED[name], signal) : { force: false };
    if (answer) await act(name, answer.force ? "?force=true" : "");
  }

  async function act(name, search) {
    const path = view.links[name];
    if (busy || !path) return;
    busy = true;
    update(view);
    complain("");
    try {
      await perform(`${path}${search}`);
    } catch (error) {
      if (!signal.aborted) complain(error);
    } finally {
      busy = false;
      update(view);
    }
  }

  /** A link cannot carry the key: with one, the file is fetched and saved. */
  async function fetched(event, name) {
    if (!key.get()) return;
    event.preventDefault();
    complain("");
    try {
      if (name === "report") await download(view.links.report, `report-${view.id}.html`, { headers: { Accept: "text/html" }, signal });
      else await download(`${view.links.model}/download`, `${view.id}.tar`, { signal });
    } catch (error) {
      if (!signal.aborted) complain(error);
    }
  }

  function update(next) {
    view = next;
    for (const [name, button] of buttons) {
      button.hidden = !view.links[name];
      button.disabled = busy;
    }
    report.hidden = !view.links.report;
    model.hidden = !view.links.model;
    mark(report, "href", view.links.report && `${view.links.report}?format=html`);
    mark(model, "href", view.links.model && `${view.links.model}/download`);
  }

  return { node, update };
}

/** Asks in a dialog; {force} or null. The safe answer has the focus, and Esc gives it. */
function confirm({ title, tells, yes, no, force }, signal) {
  const forced = h("input", { type: "checkbox", id: "force" });
  const dialog = h("dialog", { "aria-labelledby": "ask", "aria-describedby": "tells" },
    h("form", { method: "dialog", submit: (event) => { event.preventDefault(); dialog.close("yes"); } },
      h("h2", { id: "ask" }, title),
      h("div", { id: "tells" }, tells.map((text) => h("p", {}, text))),
      force ? h("label", { class: "check", for: "force" }, forced, h("span", {}, force)) : null,
      h("div", { class: "answers" },
        h("button", { type: "button", autofocus: true, click: () => dialog.close("no") }, no),
        h("button", { type: "submit", class: force ? "danger solid" : "primary" }, yes))));
  document.body.append(dialog);
  const left = () => dialog.close("no");
  signal.addEventListener("abort", left);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      signal.removeEventListener("abort", left);
      dialog.remove();
      resolve(dialog.returnValue === "yes" ? { force: forced.checked } : null);
    });
  });
}
