// Elements are made from text alone: nothing here parses HTML, so whatever a name or a log line holds stays text.

const SVG = "http://www.w3.org/2000/svg";

/** An element. Of `props`, functions listen to their event, booleans set or leave out, `class` and the rest are attributes. */
export function h(tag, props, ...children) {
  return filled(document.createElement(tag), props ?? {}, children);
}

export function svg(tag, props, ...children) {
  return filled(document.createElementNS(SVG, tag), props ?? {}, children);
}

function filled(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Sets a text where it differs: what did not change keeps its selection, and is not read out again. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function mark(node, name, value) {
  if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/**
 * Keeps the children of `parent` to a list of items, one node a key. `make(item)` returns [node, update]; nodes stay
 * where they are while their key does, and with them focus and hover. `start`: the child after which they come.
 */
export function keyed(parent, keyOf, make, start = null) {
  let known = new Map();
  return (items) => {
    const now = new Map();
    let before = start;
    for (const item of items) {
      const key = keyOf(item);
      const entry = known.get(key) ?? make(item);
      entry[1](item);
      now.set(key, entry);
      const place = before === null ? parent.firstChild : before.nextSibling;
      if (place !== entry[0]) parent.insertBefore(entry[0], place);
      before = entry[0];
    }
    for (const [key, [node]] of known) if (!now.has(key)) node.remove();
    known = now;
  };
}

/** A table that stays one to a screen reader where the style sheet lays it out as cards. */
export function table(kind, headings, body = null) {
  if (body) mark(body, "role", "rowgroup");
  return h("table", { class: kind, role: "table" },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, headings.map((name) => h("th", { scope: "col", role: "columnheader" }, name)))), body);
}
