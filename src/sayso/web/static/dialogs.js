// Help and keys, the guideline, and the list of refused votes.

import { cap, make } from "./dom.js";
import { ACTIONS, keyOf, shown } from "./keys.js";
import { VALUES, REASONS } from "./view.js";

const $ = (id) => document.getElementById(id);
const ANY = ["Tab", "Escape", "Enter", " ", "Shift", "Control", "Alt", "Meta", "Dead", "Process"];

/** Help with every key, each of which can be changed or switched off. */
export class Help {
  #keys;
  #onChange;
  #said = "";

  constructor(keys, onChange) {
    this.#keys = keys;
    this.#onChange = onChange;
    $("keys-reset").onclick = () => this.#after(() => keys.reset(), "The keys have been reset.");
    $("keys-off").onclick = () =>
      this.#after(() => keys.off(), "All keys are off. The buttons still work.");
  }

  open(kind) {
    this.kind = kind;
    this.#draw();
    $("help").showModal();
  }

  #draw(focus) {
    const actions = ACTIONS.filter((action) => action.of.includes(this.kind));
    $("key-list").replaceChildren(...actions.map((action) => this.#row(action)));
    $("keys-said").textContent = this.#said;
    if (focus) $(`key-${focus}`)?.focus();
  }

  #row({ name, label }) {
    const key = this.#keys.of(name);
    const change = make(
      "button",
      {
        type: "button",
        class: "change",
        id: `key-${name}`,
        "aria-label": `${label}: ${key ? `key ${shown(key)}` : "no key"}. Change`,
        onclick: () => this.#listen(name, label),
      },
      ...(key ? cap(key) : [make("span", { class: "none" }, "off")]),
    );
    const off = make(
      "button",
      {
        type: "button",
        class: "off",
        "aria-label": `Turn off the key for: ${label}`,
        "aria-disabled": String(!key),
        onclick: () => this.#after(() => this.#keys.set(name, ""), `${label} no longer has a key.`, name),
      },
      "Off",
    );
    return make("li", {}, make("span", {}, label), change, off);
  }

  /** Take the next key pressed. */
  #listen(name, label) {
    const button = $(`key-${name}`);
    button.replaceChildren(make("span", { class: "none" }, "press a key"));
    button.classList.add("listening");
    const heard = (event) => {
      if (["Shift", "Control", "Alt", "Meta"].includes(event.key)) return;
      event.preventDefault();
      event.stopPropagation();
      stop();
      if (event.key === "Escape" || event.key === "Tab") return this.#draw(name);
      this.#choose(name, label, event);
    };
    const left = () => (stop(), this.#draw());
    const stop = () => {
      document.removeEventListener("keydown", heard, true);
      button.removeEventListener("blur", left);
    };
    document.addEventListener("keydown", heard, true);
    button.addEventListener("blur", left);
  }

  #choose(name, label, event) {
    if (ANY.includes(event.key)) {
      return this.#after(() => {}, `The key ${shown(event.key)} cannot be used. Try another.`, name);
    }
    const key = keyOf(event);
    const robbed = this.#keys.set(name, key);
    const also = robbed ? ` ${robbed.label} no longer has a key.` : "";
    return this.#after(() => {}, `${label}: key ${shown(key)}.${also}`, name);
  }

  #after(work, said, focus) {
    work();
    this.#said = said;
    this.#draw(focus);
    this.#onChange();
  }
}

/** The guideline before the first page: `accept` is called once it was read. */
export function askToRead(html, accept) {
  $("begin-text").innerHTML = html;
  $("begin").hidden = false;
  $("begin-go").onclick = async () => {
    try {
      await accept();
      $("begin").hidden = true;
    } catch (error) {
      $("begin-said").textContent = error.message;
    }
  };
  $("begin").querySelector("h1").focus();
}

/** The guideline to read again. */
export function openGuideline(html) {
  $("guide-text").innerHTML = html;
  $("guide").showModal();
}

/** Votes that the server refused: kept until the rater sends them again or removes them. */
export class RefusedList {
  #outbox;

  constructor(outbox) {
    this.#outbox = outbox;
    $("refused-file").onclick = () => this.#asFile();
  }

  open() {
    this.#draw();
    if (!$("refused").open) $("refused").showModal();
  }

  #draw() {
    const rows = this.#outbox.refused.map((record) => this.#row(record));
    $("refused-list").replaceChildren(...rows);
    if (rows.length === 0) $("refused").close();
  }

  #row(record) {
    const { value, reason } = record.vote;
    const said = VALUES[value]?.label ?? "Taken back";
    const run = (work) => async () => {
      await work();
      this.#draw();
    };
    return make(
      "li",
      {},
      make("strong", {}, reason ? `${said} (${REASONS[reason]})` : said),
      make("span", { class: "about", dir: "auto", translate: "no" }, record.prompt),
      make("span", { class: "why" }, record.refusal.message),
      make(
        "span",
        { class: "actions" },
        button("Resend", run(() => this.#outbox.again(record))),
        button("Remove", run(() => this.#outbox.remove(record))),
      ),
    );
  }

  #asFile() {
    const plain = this.#outbox.refused.map(({ vote, refusal, prompt }) => ({ prompt, refusal, vote }));
    const blob = new Blob([JSON.stringify(plain, null, 2)], { type: "application/json" });
    const link = make("a", { href: URL.createObjectURL(blob), download: "refused-votes.json" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }
}

function button(label, onclick) {
  return make("button", { type: "button", class: "button small", onclick }, label);
}
