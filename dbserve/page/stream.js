// Server-Sent Events read with fetch, because an EventSource cannot send the API key.

import { ask, Problem } from "/assets/session.js";

const FIRST_WAIT = 500; // milliseconds before the first try to reconnect; doubled up to LONGEST_WAIT
const LONGEST_WAIT = 10_000;
const SILENCE = 40_000; // milliseconds; the server sends a comment every 15 s: a stream that says less is dead

/** Reads a stream of events (WHATWG HTML, 9.2). Feed it text; it calls onEvent({event, id, data}). */
export function parser(onEvent) {
  let rest = "";
  let event = "message";
  let id = null;
  let data = [];
  return (text) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (let line of lines) {
      if (line.endsWith("\r")) line = line.slice(0, -1);
      if (line === "") {
        if (data.length) onEvent({ event, id, data: data.join("\n") });
        event = "message";
        data = [];
        continue;
      }
      const colon = line.indexOf(":");
      const name = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (name === "data") data.push(value);
      else if (name === "event") event = value;
      else if (name === "id") id = value;
    }
  };
}

/**
 * Follows a stream until it says that nothing more will come (an event `end`, or 204), reconnecting from the last id.
 * `after`: the id of what was received last by an earlier call: where it is still the newest, it is not sent again.
 * `silence`: how long (milliseconds) nothing may come before the connection is taken for dead. `onNews()` is called with whatever arrives, comments included; `onLost(error)` whenever the connection is gone.
 * Resolves at the end; rejects with AbortError, or with a Problem that another try cannot mend.
 */
export async function follow(path, { onEvent, onNews = () => {}, onLost = () => {}, after = null, silence = SILENCE, signal }) {
  let lastId = after;
  let wait = FIRST_WAIT;
  for (;;) {
    try {
      const over = await once(path, { lastId, silence, signal }, (message) => {
        lastId = message.id ?? lastId;
        if (message.event !== "end") onEvent(message);
      }, () => {
        wait = FIRST_WAIT;
        onNews();
      });
      if (over) return;
      onLost(new Error("The stream was cut off."));
    } catch (error) {
      if (signal.aborted) throw error;
      if (error instanceof Problem && error.status < 500 && error.status !== 429) throw error;
      onLost(error);
    }
    await pause(wait * (0.75 + Math.random() / 2), signal);
    wait = Math.min(2 * wait, LONGEST_WAIT);
  }
}

/** One connection; true when the stream came to its own end. */
async function once(path, { lastId, silence, signal }, onEvent, onNews) {
  const connection = new AbortController();
  const stop = () => connection.abort();
  signal.addEventListener("abort", stop);
  let silent;
  const heard = () => {
    clearTimeout(silent);
    silent = setTimeout(stop, silence);
  };
  try {
    heard();
    const headers = { Accept: "text/event-stream", ...(lastId ? { "Last-Event-ID": lastId } : {}) };
    const answer = await ask(path, { headers, signal: connection.signal });
    onNews();
    if (answer.status === 204) return true;
    let over = false;
    const feed = parser((message) => {
      over ||= message.event === "end";
      onEvent(message);
    });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return over;
      heard();
      onNews();
      feed(value);
      if (over) return true;
    }
  } finally {
    clearTimeout(silent);
    signal.removeEventListener("abort", stop);
    connection.abort();
  }
}

/** Waits, less where the browser says that the network is back. Rejects with AbortError. */
export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const done = () => {
      clearTimeout(timer);
      removeEventListener("online", done);
      signal.removeEventListener("abort", gone);
      resolve();
    };
    const gone = () => {
      done();
      reject(new DOMException("left", "AbortError"));
    };
    const timer = setTimeout(done, milliseconds);
    addEventListener("online", done);
    signal.addEventListener("abort", gone);
    if (signal.aborted) gone();
  });
}
