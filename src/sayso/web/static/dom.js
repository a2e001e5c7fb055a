// Making elements.

import { shown } from "./keys.js";

/** Make an element. `parts` are children or text. */
export function make(tag, attributes = {}, ...parts) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...parts);
  return element;
}

/** A symbol of the sprite in the page. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A link or a button of the given {label, run, href}. */
export function actionButton({ label, run, href }, i = 0) {
  const look = { class: i === 0 ? "button main" : "button" };
  if (href) return make("a", { ...look, href }, label);
  return make("button", { ...look, type: "button", onclick: run }, label);
}

/** The picture of a key on a button; nothing if the key is off. */
export function cap(key) {
  return key ? [make("kbd", { "aria-hidden": "true" }, shown(key))] : [];
}
