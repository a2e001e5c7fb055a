// Which key does what. Every key can be changed or switched off (WCAG 2.1.4).

const KEPT = "sayso.keys";

/** Actions in the order of the help; `of`: the kinds of page on which they mean something. */
export const ACTIONS = [
  { name: "bad", key: "f", label: "Bad", of: ["rate"] },
  { name: "skip", key: "s", label: "Skip", of: ["rate", "compare"] },
  { name: "good", key: "j", label: "Good", of: ["rate"] },
  { name: "left", key: "f", label: "Left is better", of: ["compare"] },
  { name: "tie", key: "t", label: "Tie", of: ["compare"] },
  { name: "both_good", key: "y", label: "Both good", of: ["compare"] },
  { name: "both_bad", key: "b", label: "Both bad", of: ["compare"] },
  { name: "right", key: "j", label: "Right is better", of: ["compare"] },
  { name: "unclear", key: "1", label: "Skip: prompt unclear", of: ["rate", "compare"] },
  { name: "broken", key: "2", label: "Skip: image broken", of: ["rate", "compare"] },
  { name: "unsure", key: "3", label: "Skip: cannot tell", of: ["rate", "compare"] },
  { name: "unwell", key: "4", label: "Skip: rather not look", of: ["rate", "compare"] },
  { name: "undo", key: "Backspace", label: "Undo the last vote", of: ["rate", "compare"] },
  { name: "zoom", key: "z", label: "Zoom in and out", of: ["rate", "compare"] },
  { name: "full", key: "v", label: "Full screen", of: ["rate", "compare"] },
  { name: "guide", key: "g", label: "Guideline", of: ["rate", "compare"] },
  { name: "help", key: "?", label: "Help and keys", of: ["rate", "compare"] },
];

/** Actions with a button at the top. */
export const TOOLS = ["undo", "zoom", "full", "guide", "help"];

/** The rater's keys; an empty string is "off". */
export class Keys {
  #keys = read();

  of(name) {
    return this.#keys[name];
  }

  /** Give an action a key; whoever had it on the same kind of page loses it and is returned. */
  set(name, key) {
    const robbed = key ? this.#clash(name, key) : undefined;
    if (robbed) this.#keys[robbed.name] = "";
    this.#keys[name] = key;
    this.#write();
    return robbed;
  }

  reset() {
    this.#keys = standard();
    this.#write();
  }

  /** Switch all single keys off; the buttons remain. */
  off() {
    for (const action of ACTIONS) this.#keys[action.name] = "";
    this.#write();
  }

  /** The action that a key press means on a page of this kind, or undefined. */
  action(event, kind) {
    if (event.ctrlKey || event.altKey || event.metaKey) return undefined;
    const named = (key) => ACTIONS.find((a) => a.of.includes(kind) && this.#keys[a.name] === key)?.name;
    return named(keyOf(event)) ?? named(placeOf(event));
  }

  #clash(name, key) {
    const own = ACTIONS.find((action) => action.name === name);
    return ACTIONS.find(
      (other) =>
        other !== own &&
        this.#keys[other.name] === key &&
        other.of.some((kind) => own.of.includes(kind)),
    );
  }

  #write() {
    try {
      localStorage.setItem(KEPT, JSON.stringify(this.#keys));
    } catch {
      // the keys then hold until the page is closed
    }
  }
}

/** The key's name: small letters, and the Latin letter or digit on a keyboard of another script. */
export function keyOf(event) {
  const foreign = event.key.length === 1 ? event.key > "~" : ["Dead", "Process", "Unidentified"].includes(event.key);
  if (foreign) return placeOf(event) ?? event.key;
  return event.key.length === 1 ? event.key.toLowerCase() : event.key;
}

/** What stands at the key's place on the keyboard of most: digits are letters with a shift on some. */
function placeOf({ code = "", shiftKey }) {
  const [, letter, digit] = /^(?:Key([A-Z])|Digit([0-9]))$/.exec(code) ?? [];
  if (code === "Slash" && shiftKey) return "?";
  return letter?.toLowerCase() ?? digit;
}

const SHOWN = { Backspace: "⌫", ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", " ": "Space" };

/** How a key is written on a button. */
export function shown(key) {
  return SHOWN[key] ?? (key.length === 1 ? key.toUpperCase() : key);
}

function standard() {
  return Object.fromEntries(ACTIONS.map((action) => [action.name, action.key]));
}

function read() {
  try {
    return { ...standard(), ...JSON.parse(localStorage.getItem(KEPT) ?? "{}") };
  } catch {
    return standard();
  }
}
