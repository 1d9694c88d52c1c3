// The shell: which view is shown, the theme, logging in and out.

import { h, say } from "/assets/dom.js";
import { begin } from "/assets/freshness.js";
import { key, onRefused, read } from "/assets/session.js";

const main = document.getElementById("main");
const logout = document.getElementById("logout");
const toggle = document.getElementById("theme");
const dark = matchMedia("(prefers-color-scheme: dark)");

// Each view is loaded when it is first asked for. It exports open({node, path, query, signal, title}).
const VIEWS = {
  "": () => import("/assets/jobs.js"),
  jobs: () => import("/assets/job.js"),
  new: () => import("/assets/submit.js"),
};

let current = new AbortController();
let shown = null; // the address of the view that is shown
let known; // the key whose scopes the page was told last

async function route({ focus = true } = {}) {
  current.abort();
  const mine = (current = new AbortController());
  const [path, search = ""] = location.hash.replace(/^#/, "").split("?");
  const parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  shown = path;
  for (const link of document.querySelectorAll("[data-route]")) {
    const here = link.dataset.route === (parts[0] ?? "jobs");
    if (here) link.setAttribute("aria-current", parts.length < 2 ? "page" : "true");
    else link.removeAttribute("aria-current");
  }
  logout.hidden = !key.get();
  const node = h("div", { class: "view" });
  begin(false);
  const load = VIEWS[parts[0] ?? ""];
  try {
    const view = load ? await load() : { open: missing };
    if (mine.signal.aborted) return;
    main.replaceChildren(node);
    scrollTo(0, 0);
    await view.open({ node, path: parts.slice(1), query: new URLSearchParams(search), signal: mine.signal, title });
    learn(mine.signal);
  } catch (error) {
    if (mine.signal.aborted || error.status === 401) return;
    node.append(h("p", { class: "notice", role: "alert" }, error.message),
      h("p", { class: "after" }, h("button", { type: "button", click: () => route() }, "Try again")));
    main.replaceChildren(node);
  }
  if (focus && !mine.signal.aborted) main.focus({ preventScroll: true });
}

/** Whoever may only look is shown nothing that the server would refuse. */
async function learn(signal) {
  const held = key.get();
  if (held === known) return;
  if (!held) { // where no key is asked for, anybody may do all
    known = held;
    document.body.classList.remove("looks-only");
    return;
  }
  const me = await read("/v1/me", { signal }).catch(() => null);
  if (!me || held !== key.get()) return;
  known = held;
  document.body.classList.toggle("looks-only", !me.scopes.includes("submit"));
}

function title(text) {
  document.title = text ? `${text} · dbserve` : "dbserve";
}

function missing({ node }) {
  title("Not found");
  node.append(h("h1", {}, "There is no such view"), h("p", {}, h("a", { href: "#/" }, "To the jobs")));
}

async function logIn(wasRefused) {
  current.abort();
  const mine = (current = new AbortController());
  key.forget();
  logout.hidden = true;
  begin(false);
  const { open } = await import("/assets/login.js");
  if (mine.signal.aborted) return;
  const node = h("div", { class: "view" });
  main.replaceChildren(node);
  title("Log in");
  open({ node, signal: mine.signal, wasRefused, done: () => route() });
}

function themed() {
  const chosen = document.documentElement.dataset.theme;
  const isDark = chosen ? chosen === "dark" : dark.matches;
  say(toggle.querySelector("span"), isDark ? "Light theme" : "Dark theme");
  return isDark;
}

toggle.addEventListener("click", () => {
  const next = themed() ? "light" : "dark";
  if ((next === "dark") === dark.matches) {
    delete document.documentElement.dataset.theme; // as the system has it: follow it from now on
    localStorage.removeItem("dbserve.theme");
  } else {
    document.documentElement.dataset.theme = next;
    localStorage.setItem("dbserve.theme", next);
  }
  themed();
});
dark.addEventListener("change", themed);
logout.addEventListener("click", () => logIn(false));
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the fragment is the route
  main.focus();
});
onRefused(logIn);
addEventListener("hashchange", () => {
  if (location.hash.replace(/^#/, "").split("?")[0] !== shown) route();
});
themed();
route({ focus: false });
