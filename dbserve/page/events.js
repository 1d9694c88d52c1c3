// What happened to a job, newest first.

import { h, mark } from "/assets/dom.js";
import { clock, moment } from "/assets/format.js";
import { now, read } from "/assets/session.js";
import { eventSentence, taskTitle } from "/assets/words.js";

const PAGE = 500; // asked for at once
const SHOWN = 40; // before all are asked for
const MOST = 1000; // kept on the page

/** {node, update(view)}: looks for new events whenever a view says that there are some. */
export function events({ here, signal }) {
  const list = h("ol", { class: "events" });
  const all = h("button", { type: "button", class: "more", hidden: true, click: showAll }, "");
  const node = h("div", { class: "panel" }, list, all);
  let after = null;
  let looking = false;
  let again = false;
  let every = false;
  let dropped = false; // whether there were more than are kept

  async function look() {
    if (looking) {
      again = true;
      return;
    }
    looking = true;
    try {
      do {
        again = false;
        let page;
        do {
          page = await read(`${here}/events?${new URLSearchParams({ limit: PAGE, ...(after && { after }) })}`, { signal });
          after = page.next ?? after;
          list.prepend(...page.data.map(line).reverse());
          for (; list.childElementCount > MOST; dropped = true) list.lastChild.remove();
        } while (page.has_more);
      } while (again);
      fold();
    } catch (error) {
      if (error.status === 410) { // those between were dropped from the history: begin again with what is left
        after = null;
        list.replaceChildren();
      } // else: the next change of the job asks again
    } finally {
      looking = false;
    }
  }

  function fold() {
    const lines = [...list.children];
    lines.forEach((item, index) => { item.hidden = !every && index >= SHOWN; });
    all.hidden = every || lines.length <= SHOWN;
    all.textContent = `Show ${dropped ? "the last" : "all"} ${lines.length} events`;
  }

  function showAll() {
    every = true;
    fold();
  }

  return {
    node,
    update({ newest_event: newest }) {
      if (newest === undefined ? after === null : newest !== after) look();
    },
  };
}

function line(event) {
  const [sentence, tone] = eventSentence(event);
  const who = event.task ? `${taskTitle(event.task)}${event.attempt > 1 ? ` #${event.attempt}` : ""}` : "Job";
  const item = h("li", {},
    h("time", { datetime: event.at, title: moment(event.at) }, clock(event.at, now())),
    h("span", { class: "who" }, who), h("span", { class: "what" }, event.task ? sentence : sentence.replace(/^job /, "")));
  mark(item, "data-tone", tone);
  return item;
}
