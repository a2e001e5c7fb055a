// What the rater sees of a page: prompt, frames, pictures, buttons. No state of its own but the DOM.

import { actionButton, cap, icon, make } from "./dom.js";
import { ACTIONS, TOOLS, shown } from "./keys.js";
import { drawPrompt } from "./prompt.js";
import { drawStage } from "./stage.js";

export const VALUES = {
  bad: { label: "Bad", icon: "cross" },
  skip: { label: "Skip", icon: "skip" },
  good: { label: "Good", icon: "check" },
  left: { label: "Left", icon: "left" },
  tie: { label: "Tie", icon: "tie" },
  both_good: { label: "Both good", icon: "check" },
  both_bad: { label: "Both bad", icon: "cross" },
  right: { label: "Right", icon: "right" },
};
const ORDER = { rate: ["bad", "skip", "good"], compare: ["left", "tie", "both_good", "both_bad", "right", "skip"] };
export const REASONS = {
  unclear: "prompt unclear",
  broken: "image broken",
  unsure: "cannot tell",
  unwell: "rather not look",
};
const QUESTIONS = {
  rate: { alignment: "Does the image show this?", fidelity: "Does the image look right?" },
  compare: {
    alignment: "Which side shows this better?",
    fidelity: "Which side looks better, regardless of the prompt?",
  },
};
const TOPICS = { alignment: "Match", fidelity: "Looks" };

const $ = (id) => document.getElementById(id);

/** Show one of the large views: "rating" or "message". */
export function showView(name) {
  for (const view of ["rating", "message"]) $(view).hidden = view !== name;
}

/** A whole-page message with at most two actions [{label, run or href}]. */
export function showMessage(symbol, title, text, actions = []) {
  $("message").replaceChildren(
    icon(symbol),
    make("h1", { tabindex: "-1" }, title),
    make("p", {}, text),
    make("div", { class: "actions" }, ...actions.map(actionButton)),
  );
  showView("message");
  $("message").querySelector("h1").focus();
}

/** Draw prompt, question and empty frames of the final size. */
export function drawPage(page, onSelect) {
  const words = QUESTIONS[page.kind][page.question];
  $("topic").textContent = TOPICS[page.question] ?? page.question;
  $("topic").dataset.question = page.question;
  $("question").textContent = words ?? page.question;
  drawPrompt(page.prompt);
  drawStage(page, onSelect);
}

/** The buttons of a kind of page, with their keys. */
export function drawValues(kind, allowed, keys, onVote) {
  const names = ORDER[kind].filter((name) => allowed.includes(name));
  $("choices").dataset.kind = kind;
  $("choices").replaceChildren(...names.map((name) => valueButton(name, keys, onVote)));
  const reasons = allowed.includes("skip") ? Object.keys(REASONS) : [];
  $("reasons").hidden = reasons.length === 0;
  const toggle = $("reasons-toggle");
  toggle.onclick = () => toggle.setAttribute("aria-expanded", toggle.ariaExpanded !== "true");
  $("reason-list").replaceChildren(...reasons.map((name) => reasonButton(name, keys, onVote)));
}

function valueButton(name, keys, onVote) {
  const { label, icon: symbol } = VALUES[name];
  return make(
    "button",
    { type: "button", class: "choice", "data-value": name, onclick: (e) => onVote(name, "", e) },
    icon(symbol),
    make("span", { class: "label" }, label),
    ...cap(keys.of(name)),
  );
}

function reasonButton(name, keys, onVote) {
  const say = { type: "button", class: "reason", "aria-label": `Skip: ${REASONS[name]}` };
  return make(
    "button",
    { ...say, onclick: (event) => onVote("skip", name, event) },
    ...cap(keys.of(name)),
    REASONS[name],
  );
}

/** Show the keys of the tools at the top. */
export function drawTools(keys) {
  for (const { name, label } of ACTIONS.filter((action) => TOOLS.includes(action.name))) {
    const button = $(`tool-${name}`);
    const key = keys.of(name);
    button.title = key ? `${label} (${shown(key)})` : label;
    button.querySelector("kbd").textContent = shown(key);
    button.querySelector("kbd").hidden = !key;
  }
}

/** Own progress and that of the project. */
export function drawProgress({ mine, mine_total, project, project_total }) {
  meter("mine", mine, mine_total, "You");
  meter("project", project, project_total, "Project");
  $("project-foot").textContent = `Project: ${$("project-text").textContent}`;
}

function meter(id, value, total, who) {
  $(`${id}-text`).textContent = total ? `${number(value)} of ${number(total)}` : number(value);
  const bar = $(`${id}-bar`);
  bar.hidden = !total;
  bar.max = total || 1;
  bar.value = value;
  bar.setAttribute("aria-label", who);
}

export function number(n) {
  return n.toLocaleString("en");
}

/** The line at the foot: what is saved, what waits, what was refused. */
export function drawSaved({ symbol, text, state }, refused) {
  const line = $("saved");
  line.dataset.state = state;
  line.replaceChildren(icon(symbol), make("span", {}, text));
  $("saved-retry").hidden = !["offline", "slow", "unavailable"].includes(state);
  $("saved-sign-in").hidden = state !== "signed_out";
  $("refused-open").hidden = refused === 0;
  $("refused-open").textContent = refused === 1 ? "1 vote refused" : `${refused} votes refused`;
}

/** The last votes as small pictures; a press takes that vote back. */
export function drawStrip(entries, pictureOf, onPick) {
  const shownEntries = entries.slice(-8);
  const items = shownEntries.map((entry, i) => {
    const ago = shownEntries.length - i;
    const label = `Change your vote ${VALUES[entry.value].label}, ${ago} back`;
    const look = { type: "button", class: "past", dir: "auto", translate: "no" };
    const button = make("button", { ...look, "aria-label": label });
    button.title = entry.prompt;
    const picture = pictureOf(entry);
    if (picture) button.append(picture);
    const value = make("span", { class: "value", "data-value": entry.value });
    value.append(icon(VALUES[entry.value].icon));
    button.append(value);
    button.addEventListener("click", () => onPick(entry));
    return make("li", {}, button);
  });
  $("strip").replaceChildren(...items);
}

/** A notice that stays until it is taken away; `key` names it. */
export function notice(key, symbol, text) {
  $("notices").querySelector(`[data-key="${key}"]`)?.remove();
  const box = make("div", { class: "notice", "data-key": key }, icon(symbol), make("p", {}, text));
  const close = { type: "button", class: "close", "aria-label": "Dismiss" };
  box.append(make("button", { ...close, onclick: () => box.remove() }, icon("cross")));
  $("notices").append(box);
}

/** Say something to a screen reader. */
export function say(text) {
  $("live").textContent = text;
}

/** A short press of the button whose key was pressed. */
export function flash(name) {
  const button = $("choices").querySelector(`[data-value="${name}"]`);
  if (!button) return;
  button.classList.remove("pressed");
  void button.offsetWidth;
  button.classList.add("pressed");
}

/** Whether votes are possible now. */
export function setReady(ready) {
  for (const button of document.querySelectorAll(".choice, .reason")) {
    button.setAttribute("aria-disabled", String(!ready));
  }
}
