// The list of jobs, newest first. Looked at anew every few seconds while anybody sees it.

import { h, keyed, mark, say, table } from "/assets/dom.js";
import { NONE, ago, duration, moment } from "/assets/format.js";
import { begin, lost, news } from "/assets/freshness.js";
import { bar, complaint, pill } from "/assets/parts.js";
import { now, read } from "/assets/session.js";
import { pause } from "/assets/stream.js";
import { ENDED, STATUSES, why } from "/assets/words.js";

const PAGE = 25;
const LOOK = 3000; // milliseconds

export async function open({ node, query, signal, title }) {
  title("Jobs");
  begin(true);
  let asked = { status: query.get("status") ?? "", label: query.get("label") ?? "" };
  let pages = 1;
  let wake = () => {};

  const status = h("select", { id: "status", change: () => filter({ status: status.value }) },
    h("option", { value: "" }, "Any status"), STATUSES.map((name) => h("option", { value: name }, name)));
  const label = h("button", { class: "chip", type: "button", click: () => filter({ label: "" }) });
  const more = h("button", { type: "button", class: "more", click: showMore, hidden: true }, "Show older jobs");
  const [trouble, complain] = complaint();
  const empty = h("div", { class: "empty", hidden: true });
  const body = h("tbody");
  const list = table("jobs", ["Status", "Job", "Network", "Progress", "Left", "Submitted"], body);
  const draw = keyed(body, (job) => job.id, () => row((text) => filter({ label: text })));

  node.append(
    h("div", { class: "head" }, h("h1", {}, "Jobs"),
      h("div", { class: "filters" }, label, h("label", { class: "unseen", for: "status" }, "Status"), status,
        h("a", { class: "button primary", href: "#/new" }, "New job"))),
    trouble, list, empty, more);
  complain("");
  filter({});

  function filter(change) {
    asked = { ...asked, ...change };
    pages = 1;
    status.value = asked.status;
    say(label, `${asked.label}  ×`);
    mark(label, "aria-label", `Show jobs of any label, not only ${asked.label}`);
    label.hidden = !asked.label;
    const kept = new URLSearchParams(Object.entries(asked).filter(([, value]) => value)).toString();
    history.replaceState(null, "", `#/${kept ? `?${kept}` : ""}`);
    wake();
  }

  function showMore() {
    pages += 1;
    more.disabled = true;
    wake();
  }

  /** All pages that are shown, one after the other: a cursor stays good while new jobs arrive. */
  async function look({ status, label }) {
    const jobs = [];
    let after = null;
    for (let page = 0; page < pages; page += 1) {
      const search = new URLSearchParams({ limit: PAGE, ...(status && { status }), ...(label && { label }), ...(after && { after }) });
      const found = await read(`/v1/jobs?${search}`, { signal });
      jobs.push(...found.data);
      after = found.next;
      if (!found.has_more) return { jobs, more: false };
    }
    return { jobs, more: true };
  }

  function show({ jobs, more: left }) {
    draw(jobs);
    list.hidden = !jobs.length;
    empty.hidden = Boolean(jobs.length);
    more.hidden = !left;
    more.disabled = false;
    if (!jobs.length) {
      const filtered = asked.status || asked.label;
      empty.replaceChildren(
        h("p", {}, filtered ? "No job matches." : "No jobs yet."),
        filtered
          ? h("button", { type: "button", click: () => filter({ status: "", label: "" }) }, "Show every job")
          : h("a", { class: "button primary", href: "#/new" }, "Submit the first one"));
    }
  }

  async function watch() {
    for (;;) {
      const wanted = asked;
      const woken = new Promise((resolve) => { wake = resolve; });
      if (!document.hidden) {
        try {
          const found = await look(wanted);
          news();
          complain("");
          if (wanted === asked) show(found);
        } catch (error) {
          if (signal.aborted || error.status === 401) return;
          if (error.status && error.status < 500) complain(error);
          lost(error);
        }
      }
      await Promise.race([pause(LOOK, signal), woken]).catch(() => {});
      if (signal.aborted) return;
    }
  }

  document.addEventListener("visibilitychange", () => document.hidden || wake(), { signal });
  watch();
}

/** One job: [row, update]. */
function row(chooseLabel) {
  const [status, setStatus] = pill();
  const [progress, setProgress] = bar((job) => job.name);
  const link = h("a", { class: "name" });
  const id = h("code", { class: "id" });
  const labels = h("span", { class: "labels" });
  const reason = h("p", { class: "reason" });
  const network = h("td", { class: "network", role: "cell" });
  const left = h("td", { class: "left", role: "cell" });
  const age = h("time");
  const cell = (name, ...content) => h("td", { class: name, role: "cell" }, content);
  const node = h("tr", { role: "row" }, cell("status", status),
    cell("job", link, h("div", { class: "under" }, id, labels), reason), network, cell("done", progress), left, cell("age", age));
  const drawLabels = keyed(labels, (text) => text, (text) => [
    h("button", { class: "chip", type: "button", title: "Show jobs of this label", click: () => chooseLabel(text) }, text), () => {},
  ]);
  return [node, (job) => {
    setStatus(job.status);
    setProgress({ ...job.progress, status: job.status, name: job.name });
    say(link, job.name);
    mark(link, "href", `#/jobs/${job.id}`);
    say(id, job.id);
    say(network, job.architecture);
    say(left, ENDED.has(job.status) || job.progress.eta_seconds === null ? NONE : duration(job.progress.eta_seconds));
    say(age, ago(job.created_at, now()));
    mark(age, "datetime", job.created_at);
    mark(age, "title", moment(job.created_at));
    const said = job.status === "succeeded" ? "" : why(job);
    say(reason, said);
    reason.hidden = !said;
    drawLabels(Object.entries(job.labels).map(([name, value]) => `${name}=${value}`));
  }];
}
