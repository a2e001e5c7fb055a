// The rating page: starts the parts and joins them.

import { Api, ROOT } from "./api.js";
import { Breaks } from "./breaks.js";
import { Help, RefusedList, askToRead, openGuideline } from "./dialogs.js";
import { History } from "./history.js";
import { Keys, TOOLS } from "./keys.js";
import { note, tell } from "./messages.js";
import { Outbox } from "./outbox.js";
import { Queue } from "./queue.js";
import { Rating, itemsOf } from "./rating.js";
import { bindSettings } from "./settings.js";
import { wantedPx } from "./stage.js";
import { Status, stateOf } from "./status.js";
import { openStore } from "./store.js";
import { Tabs } from "./tabs.js";
import * as view from "./view.js";
import { Zoom } from "./zoom.js";

const SESSION_RETRY_MS = 5000;
const HOLD_CHECK_MS = 15_000;
const DRAIN_MS = 3000;
const TROUBLES = { offline: "offline", slow: "slow", signed_out: "signedOut", unavailable: "unavailable" };
const $ = (id) => document.getElementById(id);

const api = new Api();
const reload = () => location.reload();

async function boot() {
  let session;
  try {
    session = await api.session();
  } catch (error) {
    if (error.signedOut) return reload();
    if (error.status >= 400 && error.status < 500) return tell("refused", { retry: reload }, 0, error.message);
    setTimeout(reload, SESSION_RETRY_MS);
    return tell("unreachable", { retry: reload });
  }
  const tabs = new Tabs(api.owner);
  const [mine, store] = await Promise.all([tabs.claim(), openStore()]);
  const app = new App(session, api.owner, store);
  const aside = () => tell("otherTab", { take: () => (tabs.take(), reload()) });
  tabs.onLost = () => (app.stop(), aside());
  return mine ? app.start() : aside();
}

class App {
  #leaving = false;
  #stopped = false; // another tab rates
  #held = ""; // the message that stands until the work can go on
  #holdTimer = 0;
  #trouble = ""; // the message to show when no page is left, if the queue has trouble
  #said = ""; // what the server said to it

  constructor(session, owner, store) {
    this.session = session;
    this.task = session.task;
    this.keys = new Keys();
    this.zoom = new Zoom($("stage"), $("tool-zoom"));
    this.history = new History(store, `${owner}/${this.task?.id}`);
    this.outbox = new Outbox(store, api, owner, () => this.outboxChanged());
    this.status = new Status(this.outbox);
    this.breaks = new Breaks();
    this.refusedList = new RefusedList(this.outbox);
    this.help = new Help(this.keys, () => this.drawButtons());
  }

  async start() {
    this.bind();
    await Promise.all([this.outbox.load(), this.history.load()]);
    this.outbox.start();
    this.status.setProgress(this.session.progress);
    if (!this.outbox.lasting) note("forgetful");
    if (this.outbox.others) note("others", this.outbox.others);
    if (!this.task) return this.tell("noTask");
    if (this.task.closed) return this.tell("closed");
    if (!this.task.guideline_version || this.task.guideline_accepted) return this.begin();
    return askToRead(this.task.guideline_html, () => this.accept());
  }

  async accept() {
    try {
      await api.post("/api/guideline/accept", { version: this.task.guideline_version });
    } catch (error) {
      if (error.status !== 409) throw error;
      return this.leave(); // it has changed again: read the newest
    }
    return this.begin();
  }

  async begin() {
    const on = {
      prepare: (page) => this.prepare(page),
      changed: () => this.next(),
      trouble: (error) => this.trouble(error),
      broken: (page, error) => this.broken(page, error),
      progress: (progress) => this.well(progress),
    };
    this.queue = new Queue(api, this.task, () => this.knownPages(), on, wantedPx);
    const { outbox, queue, history, zoom } = this;
    const parts = { outbox, queue, history, zoom, guidelineVersion: this.task.guideline_version };
    this.rating = new Rating(parts, {
      voted: () => this.voted(),
      takenBack: () => this.drawStrip(),
      empty: (coming) => this.empty(coming),
      slow: (slow) => this.status.setSlow(slow),
    });
    this.drawButtons();
    this.drawStrip();
    await outbox.drain(DRAIN_MS);
    this.queue.fill();
    this.rating.next();
  }

  /** Another tab rates: nothing more is sent or rated here. */
  stop() {
    this.#leaving = this.#stopped = true;
    this.outbox.stop();
    this.queue?.stop();
    this.rating = undefined;
  }

  // what the parts tell each other

  /** Join what the server says of a page with votes that are still on their way. */
  prepare(page) {
    page.votes = {};
    this.history.complete(page);
    for (const { vote, page_id } of this.outbox.waiting) {
      const item = itemsOf(page).find(({ item_id }) => item_id === vote.item_id);
      if (!item || page_id !== page.page_id) continue;
      if (vote.value === "retracted") {
        delete page.votes[vote.item_id];
        item.supersedes = vote.id;
      } else page.votes[vote.item_id] = { vote_id: vote.id, value: vote.value };
    }
    return itemsOf(page).some((item) => !page.votes[item.item_id]);
  }

  /** Pages the server must not send again: on screen, or rated and still on their way. */
  knownPages() {
    const open = new Map(this.outbox.waiting.map((record) => [record.page_id, record.open]));
    const rated = [...open].filter(([, n]) => n === 0).map(([id]) => id);
    const shown = this.rating.page?.page_id;
    return shown ? [...new Set([shown, ...rated])] : rated;
  }

  outboxChanged() {
    this.status.update();
    for (const { vote } of this.outbox.refused) this.history.forget(vote.id);
    if (this.outbox.closed) return this.closed();
    if (["paused", "other_rater"].includes(this.outbox.state)) this.hold(this.outbox.state);
    if (this.outbox.state !== "saved" || this.rating?.page !== null) return;
    this.queue.fill();
    this.next();
  }

  next() {
    if (!this.#held) this.rating?.next();
  }

  voted() {
    this.drawStrip();
    if (this.breaks.voted()) note("rest");
  }

  empty(coming) {
    if (coming && this.#trouble !== "signedOut") return undefined;
    const { end } = this.queue;
    const why = this.#trouble || (end && this.outbox.waiting.length ? "almost" : end);
    return why ? this.tell(why) : view.showView("rating");
  }

  trouble(error) {
    this.status.trouble(error);
    if (error.status === 423) return this.hold("paused");
    if (error.otherRater) return this.hold("other_rater");
    if (error.status === 410) return this.closed();
    if (error.status === 428) return this.leave();
    this.#trouble = TROUBLES[stateOf(error)];
    if (error.status >= 400 && error.status < 500 && !error.signedOut) this.#trouble = "refused";
    this.#said = error.message;
    return this.next();
  }

  well(progress) {
    this.#trouble = "";
    this.status.well(progress);
  }

  async broken(page, error) {
    const report = { page_ids: [page.page_id], broken: true, message: error.message.slice(0, 200) };
    const failed = await api.post("/api/release", report).then(() => null, (why) => why);
    if (failed?.signedOut) return this.trouble(failed); // refused as not theirs: it comes again
    note("broken");
    return this.queue.fill();
  }

  /** Try everything again at once; a session that was renewed elsewhere is taken up. */
  async retry() {
    if (this.#stopped) return undefined;
    const { error, task, progress } = await api.session().catch((error) => ({ error }));
    if (error?.otherRater) return this.hold("other_rater");
    this.outbox.nudge();
    if (this.#held && (error || task?.paused)) return this.hold(error ? this.#held : "paused");
    error ? this.status.trouble(error) : this.well(progress);
    if (this.#held) {
      this.#held = "";
      view.showView(this.rating ? "rating" : "");
      this.next();
    }
    return this.queue?.fill();
  }

  // whole-page messages

  tell(name) {
    const signIn = () => api.signOut().catch(() => {}).then(() => this.leave());
    const run = { retry: () => this.retry(), leave: () => this.leave(), reload, signIn };
    tell(name, run, this.outbox.waiting.length, this.#said);
  }

  closed() {
    this.#held = "";
    this.queue?.stop();
    this.tell("closed");
  }

  /** Nothing can be done here now: say why, and look from time to time whether it goes on. */
  hold(why) {
    this.#held = why;
    this.tell(why);
    clearTimeout(this.#holdTimer);
    this.#holdTimer = setTimeout(() => this.#held && this.retry(), HOLD_CHECK_MS);
  }

  // page

  drawButtons() {
    view.drawTools(this.keys);
    const vote = (value, reason, event) => this.rating?.vote(value, reason, event);
    view.drawValues(this.task.kind, this.task.values, this.keys, vote);
    view.setReady(Boolean(this.rating?.page));
  }

  drawStrip() {
    const back = (entry) => this.act("undo", entry);
    view.drawStrip(this.history.entries, (entry) => this.rating.thumb(entry), back);
    $("tool-undo").setAttribute("aria-disabled", String(this.history.entries.length === 0));
  }

  bind() {
    bindSettings();
    for (const name of TOOLS) {
      $(`tool-${name}`).onclick = () => this.act(name);
    }
    $("tool-guide").hidden = !this.task?.guideline_html;
    $("tool-full").hidden = !document.fullscreenEnabled;
    $("saved-retry").onclick = () => this.retry();
    $("saved-sign-in").onclick = () => (this.#leaving = true);
    $("refused-open").onclick = () => this.refusedList.open();
    for (const field of document.querySelectorAll("[data-csrf]")) field.value = api.csrf;
    document.addEventListener("keydown", (event) => this.pressed(event));
    window.addEventListener("online", () => this.retry());
    window.addEventListener("focus", () => this.retry()); // somebody may have signed in elsewhere
    window.addEventListener("pageshow", (event) => event.persisted && reload());
    window.addEventListener("beforeunload", (event) => this.warn(event));
  }

  /** A key press: an action, a move of the zoomed spot, or another picture of a group. */
  pressed(event) {
    const onButton = event.target.closest?.("button, a, summary");
    if (event.repeat && onButton && ["Enter", " "].includes(event.key)) event.preventDefault();
    if (document.querySelector("dialog[open]") || event.target.closest?.("input, textarea, select")) return;
    const action = this.keys.action(event, this.task?.kind ?? "rate");
    if (action) {
      event.preventDefault();
      if (!event.repeat) this.act(action);
    } else if (this.zoom.move(event.key)) event.preventDefault();
    else if (!event.repeat) this.moved(event.key);
  }

  moved(key) {
    if (key === "Escape") this.zoom.set(false);
    if (key === "ArrowLeft") this.rating?.step(-1);
    if (key === "ArrowRight") this.rating?.step(1);
  }

  act(action, entry) {
    if (action === "help") return this.help.open(this.task?.kind ?? "rate");
    if (action === "guide") return this.task?.guideline_html && openGuideline(this.task.guideline_html);
    if (action === "undo") return this.#held ? undefined : this.rating?.undo(entry);
    if (action === "full") return turnFull();
    if (!this.rating || $("rating").hidden) return undefined;
    if (action === "zoom") return this.zoom.toggle();
    const [value, reason] = action in view.REASONS ? ["skip", action] : [action, ""];
    return this.task.values.includes(value) && this.rating.vote(value, reason);
  }

  warn(event) {
    if (!this.#leaving && this.outbox.waiting.length) event.preventDefault();
  }

  /** Go to the start page on purpose: what is unsent stays in the browser. */
  leave() {
    this.#leaving = true;
    location.assign(ROOT);
  }
}

/** The whole screen for the page, or no longer. */
function turnFull() {
  if (document.fullscreenElement) return document.exitFullscreen();
  return document.documentElement.requestFullscreen?.().catch(() => {});
}

navigator.serviceWorker?.register(`${ROOT}worker.js`).catch(() => {}); // none over plain http
boot();
