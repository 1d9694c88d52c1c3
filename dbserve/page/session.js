// Talking to the REST API: the key, errors in words, and the server's clock.

const KEY = "dbserve.key";
let skew = 0; // milliseconds that the server's clock is ahead of this one
let refused = () => {};

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** Called whenever the server asks for a key, or refuses the one it was given. */
export function onRefused(listener) {
  refused = listener;
}

/** Now, by the server's clock (milliseconds). */
export const now = () => Date.now() + skew;

/** What the server answers instead of what was asked for (RFC 9457). */
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || body.title || `the server answered ${status}`);
    this.status = status;
    this.code = body.code ?? "";
    this.title = body.title ?? "";
    this.faults = body.errors ?? [];
    this.requestId = body.request_id ?? "";
  }
}

/** No answer at all. */
export class Unreachable extends Error {
  constructor() {
    super("The server does not answer.");
  }
}

/** An answer whose status is good. Throws Problem, Unreachable, or AbortError. */
export async function ask(path, { method = "GET", headers = {}, body, signal, cache = "no-store" } = {}) {
  const held = key.get();
  let answer;
  try {
    answer = await fetch(path, {
      method, body, signal, cache,
      headers: held ? { ...headers, Authorization: `Bearer ${held}` } : headers,
    });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Unreachable();
  }
  const dated = Date.parse(answer.headers.get("Date"));
  if (dated && Math.abs(dated - Date.now() - skew) > 2000) skew = dated - Date.now();
  if (answer.ok) return answer;
  const problem = new Problem(answer.status, await answer.json().catch(() => ({})));
  const asked = problem.status === 401 || (problem.status === 429 && !held); // too many without a key: one is asked for
  if (asked && held === key.get()) refused(Boolean(held)); // else: of a key given up meanwhile
  throw problem;
}

export async function read(path, options) {
  const answer = await ask(path, options);
  return answer.status === 204 ? null : answer.json();
}

export const send = (path, options = {}) => read(path, { method: "POST", ...options });

/** Saves a file that only a request with the key can fetch. */
export async function download(path, name, options) {
  const answer = await ask(path, options);
  const url = URL.createObjectURL(await answer.blob());
  const anchor = document.createElement("a");
  anchor.href = url;
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
