// A new job: its file as text, what it would become, and its submission.

import { h, mark, say, table } from "/assets/dom.js";
import { bytes, count, percent } from "/assets/format.js";
import { complaint } from "/assets/parts.js";
import { send, Unreachable } from "/assets/session.js";
import { layerRange, noiseRange } from "/assets/words.js";

const EXAMPLE = `# Digits that come with the service: needs no data of yours.
name: digits
architecture:
  kind: vit
  options: {depth: 6, width: 128, heads: 4, patch: 4, mlp: 256}
data:
  uri: builtin:digits
blocks: {count: 3}
training: {steps: 600, batch_size: 64, lr: 3.0e-3, warmup: 50}
checkpoint: {every_steps: 100}
evaluation: {baselines: [end_to_end]}
`;
const KINDS = ["parameters", "gradients", "optimizer", "activations"];
const LARGEST = 1024 * 1024; // what the server takes

export function open({ node, signal, title }) {
  title("New job");
  const [trouble, complain] = complaint();
  const text = h("textarea", { id: "spec", spellcheck: "false", autocapitalize: "off", rows: "18", input: changed, "aria-describedby": "spec-note" });
  const file = h("input", { type: "file", id: "file", class: "unseen", accept: ".yaml,.yml,.json", change: load });
  const plan = h("button", { type: "button", click: () => act(showPlan) }, "Plan");
  const submit = h("button", { type: "button", class: "primary", click: () => act(accept) }, "Submit");
  const result = h("div", { class: "plan", "aria-live": "polite" }, h("p", { class: "soft" },
    "Plan shows what the job would become: its blocks, their noise ranges, and the memory each worker needs. Nothing is stored."));
  let key = freshKey();
  text.value = EXAMPLE;
  complain("");
  node.append(h("div", { class: "head" }, h("h1", {}, "New job")),
    h("div", { class: "pair submit" },
      h("section", { "aria-labelledby": "h-file" },
        h("div", { class: "title" }, h("h2", { id: "h-file" }, h("label", { for: "spec" }, "Job file")), h("p", { class: "soft", id: "spec-note" }, "YAML or JSON. Paths are the server's.")),
        text, trouble,
        h("div", { class: "answers" }, h("label", { class: "button", for: "file" }, "Open a file…"), file,
          h("span", { class: "gap" }), plan, submit)),
      h("section", { "aria-labelledby": "h-plan" }, h("div", { class: "title" }, h("h2", { id: "h-plan" }, "Plan")), result)));

  /** Another text is another job; the same text, sent again after no answer came, is the same one. */
  function changed() {
    key = freshKey();
    complain("");
    mark(text, "aria-invalid", null);
  }

  async function load() {
    const [chosen] = file.files;
    if (!chosen) return;
    if (chosen.size > LARGEST) return complain(`${chosen.name} is larger than 1 MiB: that is no job file.`);
    text.value = await chosen.text();
    file.value = "";
    changed();
    text.focus();
  }

  const request = () => ({
    body: text.value,
    headers: { "Content-Type": text.value.trimStart().startsWith("{") ? "application/json" : "application/yaml" },
    signal,
  });

  async function act(work) {
    plan.disabled = submit.disabled = true;
    mark(result, "aria-busy", "true");
    complain("");
    try {
      await work();
    } catch (error) {
      if (signal.aborted) return;
      mark(text, "aria-invalid", error.status === 422 ? "true" : null);
      complain(error instanceof Unreachable ? `${error.message} Try again: the job will not be made twice.` : error);
    } finally {
      plan.disabled = submit.disabled = false;
      mark(result, "aria-busy", null);
    }
  }

  async function showPlan() {
    result.replaceChildren(...drawn(await send("/v1/plans", request())));
  }

  async function accept() {
    const { headers, ...rest } = request();
    const job = await send("/v1/jobs", { ...rest, headers: { ...headers, "Idempotency-Key": key } });
    location.hash = `#/jobs/${job.id}`;
  }
}

/** Of random bytes: crypto.randomUUID is there on secure origins only. */
function freshKey() {
  return `page-${[...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/** A plan as a page. */
function drawn(plan) {
  const whole = plan.end_to_end.memory.total;
  const largest = Math.max(whole, ...plan.blocks.map((block) => block.memory.total));
  const trained = plan.tasks.filter((task) => task.steps);
  const steps = [...new Set(trained.map((task) => task.steps))].map(count).join(" or ");
  const rows = [
    ...plan.blocks.map((block) => row(`Block ${block.index}`, block, largest, {
      range: noiseRange(block.sigma_min, block.sigma_max), share: `${percent(block.memory.total / whole)} of end-to-end`,
    })),
    row("End to end", plan.end_to_end, largest, { range: "", share: "for comparison" }),
  ];
  return [
    h("p", { class: "verdict" }, `${plan.blocks.length} ${plan.blocks.length === 1 ? "block" : "blocks"}: a worker needs `,
      h("strong", {}, percent(plan.memory_ratio)), " of the memory of end-to-end training."),
    h("p", { class: "soft" }, `${plan.contract.architecture} · ${count(plan.data.train_rows)} rows to train on, ${count(plan.data.test_rows)} held out · ${trained.length} tasks train, ${steps} steps each`),
    plan.warnings.length ? h("ul", { class: "warnings" }, plan.warnings.map((text) => h("li", {}, text))) : null,
    h("ul", { class: "kinds", "aria-hidden": "true" }, KINDS.map((kind) => h("li", {}, h("span", { class: `swatch kind-${kind}` }), kind))),
    table("blocks", ["Network", "Layers", "Parameters", "Memory of a worker"], h("tbody", {}, rows)),
  ].filter(Boolean);
}

function row(name, network, largest, { range, share }) {
  const parts = KINDS.map((kind) => {
    const part = h("div", { class: `part kind-${kind}`, title: `${kind}: ${bytes(network.memory[kind])}` });
    part.style.width = `${(100 * network.memory[kind]) / largest}%`;
    return part;
  });
  const figures = h("div", { class: "figures" }, h("span", { class: "percent" }, bytes(network.memory.total)), h("span", { class: "steps" }, share));
  const track = h("div", { class: "track stacked", role: "img", "aria-label": KINDS.map((kind) => `${kind} ${bytes(network.memory[kind])}`).join(", ") }, parts);
  const levels = h("span", { class: "about" });
  say(levels, range);
  return h("tr", { role: "row" }, h("th", { scope: "row", role: "rowheader" }, h("span", { class: "name" }, name), levels),
    h("td", { role: "cell" }, layerRange(network.layers).replace(/^layers? /, "")), h("td", { class: "number", role: "cell" }, count(network.parameters)),
    h("td", { class: "memory", role: "cell" }, h("div", { class: "progress" }, track, figures)));
}
