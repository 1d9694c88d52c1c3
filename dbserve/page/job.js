// One job, live: what it does, what it costs, why it stopped, and what can be done about it.

import { actions } from "/assets/actions.js";
import { curves } from "/assets/curves.js";
import { h, keyed, mark, say } from "/assets/dom.js";
import { events } from "/assets/events.js";
import { NONE, ago, count, duration, moment, percent } from "/assets/format.js";
import { begin, ended, lost, news } from "/assets/freshness.js";
import { logs } from "/assets/logs.js";
import { complaint, bar, figure, pill } from "/assets/parts.js";
import { now, read, send } from "/assets/session.js";
import { follow, pause } from "/assets/stream.js";
import { memoryOf, tasks } from "/assets/tasks.js";
import { conditionMeans, ENDED, statusMeans, taskTitle, why } from "/assets/words.js";

const WORKING = new Set(["launched", "running", "pausing", "cancelling"]);
const AGAIN = 1000; // milliseconds until a stream that ended, of a job that has not, is asked for again

export async function open({ node, path, query, signal, title }) {
  const [id] = path;
  const here = `/v1/jobs/${encodeURIComponent(id)}`;
  const first = await read(here, { signal }); // what is wrong with the address is said at once, and in words
  begin(true);
  const top = head(first, { signal, perform });
  const rows = tasks();
  const charts = curves({ here, signal });
  const happened = events({ here, signal });
  const said = logs({ here, signal, query });
  const specification = h("pre", { tabindex: "0" }, JSON.stringify(first.spec, null, 2));
  const warnings = h("ul", { class: "warnings" }, first.warnings.map((text) => h("li", {}, text)));
  let latest = first; // the newest view: what comes late is added to it, and never brings back an older one
  let seen = null; // id of the last view that a stream brought
  let blocks = new Map(); // name -> the block in full: its layers, noise range, predicted memory, restarts
  let known = ""; // the states for which the blocks were asked for last
  let asking = false; // for the blocks
  let watching = null; // what ends the present stream
  let missed = false; // whether something happened that the stream did not tell

  node.classList.add("job-view");
  node.append(
    h("nav", { class: "crumb", "aria-label": "Breadcrumb" }, h("a", { href: "#/" }, "Jobs"), " / ", h("span", { "aria-current": "page" }, first.name)),
    top.node,
    section("Tasks", "Each block trains alone; baselines are what it is compared with.", rows.node),
    section("Curves", "Point at a chart, or focus it and use the arrow keys, to read it.", charts.node),
    h("div", { class: "pair" }, section("Events", "", happened.node), section("Logs", "", said.node)),
    h("section", { class: "closing" },
      warnings.childElementCount ? [h("h2", {}, "Warnings of the plan"), warnings] : null,
      h("details", {}, h("summary", {}, "The job as submitted"), specification)));
  show(first);
  watch();

  function show(view) {
    latest = view;
    title(`${ENDED.has(view.status) ? view.status : `${Math.floor(view.progress.percent)} %`} ${view.name}`);
    const memory = memoryOf(view, charts.predicted);
    top.update(view, memory);
    rows.update(view, blocks, memory);
    charts.update(view, memory);
    happened.update(view);
    said.update(view);
    complete();
  }

  /** Asks for what the stream leaves out, which changes only with a state or an attempt: one request at a time. */
  async function complete() {
    if (asking) return; // it looks again when it has its answer
    asking = true;
    while (states(latest) !== known) {
      if (known) charts.load();
      known = states(latest);
      const answer = await read(`${here}/blocks`, { signal }).catch(() => null);
      if (answer === null) {
        known = ""; // the next view asks again
        break;
      }
      blocks = new Map(answer.data.map((block) => [block.name, block]));
      rows.update(latest, blocks, memoryOf(latest, charts.predicted));
    }
    asking = false;
  }

  /** Asks for an action, and shows its answer. The stream may be up to a second behind: what was seen before is not shown again. */
  async function perform(path) {
    const before = seen;
    show(await send(path, { signal }));
    watch(before);
  }

  /** Follows the job while the tab is seen: a browser opens six connections to a server, whatever number of tabs asks. */
  async function watch(after = seen) {
    watching?.abort();
    const mine = (watching = new AbortController());
    const either = AbortSignal.any([signal, mine.signal]);
    seen = after;
    try {
      do {
        await follow(`${here}/live`, {
          signal: either,
          after: seen,
          silence: 15_000, // of this stream a comment comes every 3 s
          onNews: news,
          onLost: (error) => {
            missed = true;
            lost(error);
          },
          onEvent: ({ data, id }) => {
            if (missed) charts.load();
            missed = false;
            seen = id;
            show(JSON.parse(data));
          },
        });
      } while (!(await over(either)));
      ended();
    } catch (error) {
      if (either.aborted || error.status === 401) return;
      ended();
      top.complain(error.status === 404 ? "This job was deleted meanwhile." : error);
    }
  }

  /** Whether the job has ended, as the server knows it now: a stream may have closed with a view from before another try. */
  async function over(either) {
    const view = await read(here, { signal: either }).catch((error) => {
      if (either.aborted || (error.status < 500 && error.status !== 429)) throw error;
      lost(error); // no answer, or none for now
      return null;
    });
    if (view !== null) show(view);
    if (ENDED.has(view?.status)) return true;
    await pause(AGAIN, either);
    return false;
  }

  document.addEventListener("visibilitychange", () => {
    missed = true;
    if (document.hidden) watching.abort();
    else watch();
  }, { signal });
}

/** The state and attempt of every task, to be compared. */
const states = ({ tasks: all }) => all.map((task) => `${task.status}${task.attempt}`).join();

/** What the status means, with how many tasks are where while they work. */
function standing({ status, tasks: all }) {
  if (ENDED.has(status) || status === "queued") return statusMeans(status);
  const working = all.filter((task) => WORKING.has(task.status)).length;
  const done = all.filter((task) => task.status === "succeeded").length;
  const counted = `${working} of ${all.length} tasks at work, ${done} done`;
  return status === "running" ? counted : `${statusMeans(status)} · ${counted}`;
}

function section(name, note, ...content) {
  const id = `h-${name.toLowerCase()}`;
  return h("section", { "aria-labelledby": id },
    h("div", { class: "title" }, h("h2", { id }, name), note ? h("p", { class: "soft" }, note) : null), content);
}

/** The head of the page: name, state in words, the buttons, four figures. */
function head(first, { signal, perform }) {
  const [status, setStatus] = pill();
  const [progress, setProgress] = bar((job) => job.name);
  const [trouble, complain] = complaint();
  const words = h("p", { class: "words", role: "status" });
  const wrong = h("ul", { class: "conditions" });
  const drawWrong = keyed(wrong, (item) => item.key, (item) => [h("li", {}, item.text), () => {}]);
  const age = h("time", { datetime: first.created_at, title: moment(first.created_at) });
  const [left, setLeft] = figure("Time left");
  const [speed, setSpeed] = figure("Throughput");
  const [memory, setMemory] = figure("Memory of a block");
  const buttons = actions({ signal, perform, complain });
  complain("");
  const labels = Object.entries(first.labels).map(([name, value]) =>
    h("a", { class: "chip", href: `#/?${new URLSearchParams({ label: `${name}=${value}` })}` }, `${name}=${value}`));
  const node = h("header", { class: "top" },
    h("div", { class: "head" },
      h("div", { class: "names" }, h("h1", {}, first.name), status), buttons.node),
    h("p", { class: "under" }, h("span", {}, first.architecture), h("code", { class: "id" }, first.id), h("span", {}, "submitted ", age), labels),
    words, wrong, trouble,
    h("dl", { class: "figures-row" },
      h("div", { class: "figure wide" }, h("dt", {}, "Progress"), h("dd", {}, progress)), left, speed, memory));

  function update(view, { ratio, measured }) {
    setStatus(view.status);
    setProgress({ ...view.progress, status: view.status, name: view.name });
    say(age, ago(view.created_at, now()));
    say(words, [standing(view), view.status === "succeeded" ? "" : why(view)].filter(Boolean).join(" · "));
    mark(words, "data-tone", view.status === "failed" ? "bad" : null);
    drawWrong(view.tasks.flatMap((task) => task.conditions.map((condition) => ({
      key: `${task.name} ${condition}`, text: `${taskTitle(task.name)}: ${conditionMeans(condition)}`,
    }))));
    const over = ENDED.has(view.status);
    const lasted = over && view.finished_at ? (Date.parse(view.finished_at) - Date.parse(view.created_at)) / 1000 : null;
    setLeft(over ? duration(lasted) : duration(view.progress.eta_seconds), over ? "from submission to its end" : "of training, as fast as now");
    say(left.querySelector("dt"), over ? "Took" : "Time left");
    const running = view.tasks.filter((task) => task.status === "running" && task.samples_per_second);
    const sum = running.reduce((total, task) => total + task.samples_per_second, 0);
    setSpeed(running.length ? `${count(sum)} /s` : NONE, running.length ? `samples, by ${running.length} worker${running.length > 1 ? "s" : ""}` : "no worker trains now");
    setMemory(percent(measured ?? ratio), measured === null ? "of end-to-end, as predicted" : `of end-to-end; predicted ${percent(ratio)}`);
    buttons.update(view);
  }
  return { node, update, complain };
}
