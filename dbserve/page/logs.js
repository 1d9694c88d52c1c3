// What a job's workers say: the last lines, and on request those that arrive.

import { h, mark, say } from "/assets/dom.js";
import { clock, moment } from "/assets/format.js";
import { complaint } from "/assets/parts.js";
import { now, read } from "/assets/session.js";
import { follow } from "/assets/stream.js";
import { ENDED, taskTitle } from "/assets/words.js";

const TAIL = 200;
const MOST = 2000; // lines kept on the page
const LEVELS = [["", "Every level"], ["warning", "Warnings and errors"], ["error", "Errors"]];

/** {node, update(view)}. A link may ask for a task: #/jobs/ID?logs=block-0&attempt=2 */
export function logs({ here, signal, query }) {
  const task = h("select", { "aria-label": "Task", change: choose });
  const attempt = h("select", { "aria-label": "Attempt", change: load });
  const level = h("select", { "aria-label": "Level", change: load },
    LEVELS.map(([value, text]) => h("option", { value }, text)));
  const following = h("input", { type: "checkbox", id: "follow", change: load });
  const lines = h("ol", { class: "lines", tabindex: "0", "aria-label": "Log lines, oldest first" });
  const [trouble, complain] = complaint();
  const note = h("p", { class: "soft", role: "status" });
  const node = h("div", { class: "panel" },
    h("div", { class: "choices" }, task, attempt, level, h("label", { class: "check", for: "follow" }, following, h("span", {}, "Follow"))),
    trouble, lines, note);
  let view = null;
  let loading = new AbortController();
  complain("");

  function choose() {
    offerAttempts();
    attempt.value = "";
    load();
  }

  function offerAttempts() {
    const newest = view.tasks.find(({ name }) => name === task.value)?.attempt ?? 0;
    const wanted = ["", ...Array.from({ length: newest }, (_, index) => String(newest - index))];
    if (attempt.options.length === wanted.length) return;
    const chosen = attempt.value;
    attempt.replaceChildren(...wanted.map((value) => h("option", { value }, value ? `Attempt ${value}` : "Every attempt")));
    attempt.value = chosen;
    attempt.disabled = newest === 0;
  }

  async function load() {
    loading.abort();
    const mine = (loading = new AbortController());
    const either = AbortSignal.any([signal, mine.signal]);
    const search = { tail: TAIL, ...(task.value && { task: task.value }), ...(attempt.value && { attempt: attempt.value }), ...(level.value && { level: level.value }) };
    lines.replaceChildren();
    complain("");
    say(note, "");
    try {
      if (following.checked) {
        say(note, "Following");
        await follow(`${here}/logs?${new URLSearchParams({ ...search, follow: true })}`, {
          signal: either,
          onNews: () => say(note, "Following"),
          onLost: () => say(note, "Reconnecting"),
          onEvent: ({ data }) => add([JSON.parse(data)]),
        });
        say(note, "The job has ended: nothing more will come.");
      } else {
        const page = await read(`${here}/logs?${new URLSearchParams(search)}`, { signal: either });
        add(page.data);
        if (!page.data.length) say(note, "Nothing was logged.");
      }
    } catch (error) {
      if (!either.aborted && error.status !== 401) complain(error);
    }
  }

  /** Stays at the end while the end is in view. */
  function add(found) {
    const atEnd = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 24;
    lines.append(...found.map(line));
    while (lines.childElementCount > MOST) lines.firstChild.remove();
    if (atEnd) lines.scrollTop = lines.scrollHeight;
  }

  // A hidden tab gives its connection back: see job.js.
  document.addEventListener("visibilitychange", () => {
    if (!following.checked || view === null) return;
    if (document.hidden) loading.abort();
    else load();
  }, { signal });

  return {
    node,
    update(next) {
      const first = view === null;
      const again = !first && ENDED.has(view.status) && !ENDED.has(next.status); // it is tried again: there is more to come
      view = next;
      if (first) {
        task.append(h("option", { value: "" }, "Every task"), ...next.tasks.map(({ name }) => h("option", { value: name }, taskTitle(name))));
        task.value = next.tasks.some(({ name }) => name === query.get("logs")) ? query.get("logs") : "";
      }
      offerAttempts();
      if (!first && !again) return;
      if (first && query.has("attempt")) attempt.value = query.get("attempt");
      following.checked = !ENDED.has(next.status);
      load();
    },
  };
}

function line({ at, task, attempt, level, message, fields }) {
  const more = Object.entries(fields ?? {}).map(([name, value]) => `${name}=${typeof value === "object" ? JSON.stringify(value) : value}`).join(" ");
  const item = h("li", {},
    h("time", { datetime: at, title: moment(at) }, clock(at, now())),
    h("span", { class: "who" }, `${task}#${attempt}`), h("span", { class: "what" }, message, more ? h("span", { class: "fields" }, ` ${more}`) : null));
  mark(item, "data-level", level.toLowerCase());
  return item;
}
