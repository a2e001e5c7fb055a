// The line that says what is saved and what waits, the progress, and what a screen reader hears.

import * as view from "./view.js";

const CALM_MS = 400; // a vote that is saved faster than this is not shown as waiting
const SAY_MS = 500;
const STUCK = new Set(["offline", "slow", "unavailable", "signed_out", "other_rater", "paused"]);

/** Keeps the foot of the page, the progress and the live region true. */
export class Status {
  #outbox;
  #net = ""; // what kept the queue from getting pages: a stuck state, or nothing
  #slow = false; // the rater waits for pictures that come in slowly
  #progress = null;
  #calm = 0;
  #saying = 0;
  #ticking = 0;

  constructor(outbox) {
    this.#outbox = outbox;
  }

  /** After any change of the outbox. */
  update() {
    const { state, progress } = this.#outbox;
    clearTimeout(this.#calm);
    if (state === "sending") this.#calm = setTimeout(() => this.#draw(), CALM_MS);
    else this.#draw();
    if (state === "saved" && progress) this.#announce();
    this.setProgress(progress ?? this.#progress);
    clearInterval(this.#ticking);
    if (STUCK.has(state)) this.#ticking = setInterval(() => this.#draw(), 1000);
  }

  setProgress(progress) {
    if (!progress) return;
    this.#progress = progress;
    const unsent = this.#outbox.unsentProgress;
    view.drawProgress({ ...progress, mine: progress.mine + unsent });
  }

  /** The queue could not get pages or pictures. */
  trouble(error) {
    const refused = error.status >= 400 && error.status < 500 && !error.signedOut;
    this.#net = refused ? "" : stateOf(error);
    this.#draw();
  }

  /** Whether the rater waits for pictures that come in slowly. */
  setSlow(slow) {
    this.#slow = slow;
    this.#draw();
  }

  /** The queue got pages: the connection is well. */
  well(progress) {
    this.#net = "";
    this.setProgress(progress);
    this.#draw();
  }

  #draw() {
    const { state, lasting, refused } = this.#outbox;
    const busy = this.#slow && state === "saved" ? "loading" : state;
    const shown = STUCK.has(state) ? state : this.#net || busy;
    const line = { ...this.#outbox.summary, state: shown, lasting };
    view.drawSaved(sentence(line), refused.length);
  }

  #announce() {
    clearTimeout(this.#saying);
    this.#saying = setTimeout(() => {
      const { mine, mine_total: total } = this.#outbox.progress;
      view.say(total ? `Saved, ${mine} of ${total}` : `Saved, ${mine}`);
    }, SAY_MS);
  }
}

const SYMBOLS = {
  offline: "offline",
  slow: "sync",
  signed_out: "lock",
  other_rater: "lock",
  paused: "pause",
  unavailable: "warn",
};
const WHY = {
  offline: "offline",
  signed_out: "signed out",
  other_rater: "another rater has signed in",
  paused: "paused",
  slow: "slow connection, still trying",
  unavailable: "the server cannot store votes now",
};

/** The stuck state that an error means. */
export function stateOf(error) {
  if (error.offline) return "offline";
  if (error.slow) return "slow";
  if (error.signedOut) return error.otherRater ? "other_rater" : "signed_out";
  return error.status === 423 ? "paused" : "unavailable";
}

/** What the foot says: {symbol, text, state}. */
function sentence({ waiting, retryAt, state, lasting }) {
  if (waiting && !lasting) {
    return { symbol: "warn", text: `${waiting} not saved yet: keep this tab open`, state };
  }
  if (STUCK.has(state)) {
    const seconds = Math.ceil((retryAt - Date.now()) / 1000);
    const waits = waiting && seconds > 0 && !["signed_out", "other_rater"].includes(state);
    const again = waits ? `, retrying in ${seconds} s` : "";
    const what = waiting ? `${waiting} waiting` : "All saved";
    return { symbol: SYMBOLS[state], text: `${what}: ${WHY[state]}${again}`, state };
  }
  if (state === "loading") return { symbol: "sync", text: "All saved; slow connection", state: "saved" };
  if (waiting === 0) return { symbol: "check", text: "All saved", state: "saved" };
  return { symbol: "sync", text: waiting === 1 ? "Saving 1 vote" : `Saving ${waiting} votes`, state };
}
