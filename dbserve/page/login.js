// The API key, where the server asks for one. It is kept for this tab alone, and forgotten with it.

import { h } from "/assets/dom.js";
import { complaint } from "/assets/parts.js";
import { key, read } from "/assets/session.js";

export function open({ node, signal, wasRefused, done }) {
  const [trouble, complain] = complaint();
  const field = h("input", {
    id: "key", type: "password", autocomplete: "current-password", required: true, spellcheck: "false",
    autocapitalize: "off", "aria-describedby": "key-note",
  });
  const user = h("input", { type: "text", class: "unseen", autocomplete: "username", value: "dbserve", tabindex: "-1", "aria-hidden": "true", readonly: true }); // by which a password manager files the key
  const enter = h("button", { class: "primary", type: "submit" }, "Log in");

  async function submit(event) {
    event.preventDefault();
    const given = field.value.trim();
    if (!/^[\x21-\x7e]+$/.test(given)) return refuse();
    enter.disabled = true;
    complain("");
    key.set(given);
    try {
      await read("/v1/jobs?limit=1", { signal });
      done();
    } catch (error) {
      if (error.status === 401 || signal.aborted) return; // the login is shown anew, and says so
      key.forget();
      complain(error);
      enter.disabled = false;
    }
  }

  function refuse() {
    complain("The server refused this key.");
    field.setAttribute("aria-invalid", "true");
    field.select();
  }

  node.append(h("form", { class: "card login", submit },
    h("h1", {}, "Log in"),
    h("p", { class: "soft", id: "key-note" }, "This server asks for an API key. It is kept in this tab only, until you log out or close it."),
    user, h("label", { for: "key" }, "API key"), field, trouble, enter));
  complain("");
  if (wasRefused) refuse();
  field.focus();
}
