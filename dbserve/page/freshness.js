// How fresh what is shown is: the mark in the header, and the band over the page when news has stopped coming.

import { h, say, mark } from "/assets/dom.js";
import { clock, duration } from "/assets/format.js";

const LATE = 10_000; // milliseconds without news, which is due every 3 s, before what is shown counts as stale
const chip = document.getElementById("link");
const band = document.getElementById("lost");
const dot = h("span", { class: "dot" });
const words = h("span");
const age = h("span", { class: "age", "aria-hidden": "true" }); // changes each second: not to be read out
chip.append(dot, words, age);

let state = "off"; // off | live | lost | ended
let heardAt = 0;
let reason = ""; // of the server, where it answers and cannot help

/** Something arrived from the server. */
export function news() {
  heardAt = Date.now();
  state = "live";
  reason = "";
  draw();
}

/** The connection is gone, or the server refuses for now; it is tried again. */
export function lost(error) {
  reason = error.status ? error.message.replace(/\.$/, "") : "";
  heardAt ||= Date.now();
  if (state !== "off") state = "lost";
  draw();
}

/** Nothing more is expected: what is shown is final. */
export function ended() {
  state = "ended";
  draw();
}

/** A view begins; none, or what it shows does not live. */
export function begin(lives) {
  state = lives ? "live" : "off";
  heardAt = Date.now();
  reason = "";
  draw();
}

function draw() {
  const silent = Date.now() - heardAt;
  const stale = state === "lost" || (state === "live" && silent > LATE);
  chip.hidden = state === "off";
  mark(chip, "data-state", stale ? "lost" : state);
  say(words, stale ? "Reconnecting" : state === "ended" ? "Final" : "Live");
  say(age, stale ? ` · last news ${duration(silent / 1000)} ago` : "");
  mark(document.documentElement, "data-stale", stale || null);
  band.hidden = !stale;
  say(band, stale ? `No news from the server${reason && ` (${reason})`}. Shown is what was known at ${clock(heardAt)}; trying to reconnect.` : "");
}

setInterval(draw, 1000);
