// The rating page: starts the parts and joins them.

import { Api } from "./api.js";
import { BreakTimer } from "./clock.js";
import { Help, RefusedList, askToRead, openGuideline } from "./dialogs.js";
import { History } from "./history.js";
import { Keys } from "./keys.js";
import { tell } from "./messages.js";
import { Outbox } from "./outbox.js";
import { Queue } from "./queue.js";
import { Rating, itemsOf } from "./rating.js";
import { bindSettings, breakMinutes } from "./settings.js";
import { Status } from "./status.js";
import { openStore } from "./store.js";
import { Tabs } from "./tabs.js";
import * as view from "./view.js";
import { Zoom } from "./zoom.js";

const SESSION_RETRY_MS = 5000;
const PAUSE_CHECK_MS = 15_000;
const DRAIN_MS = 3000;
const $ = (id) => document.getElementById(id);

const api = new Api();
const reload = () => location.reload();

async function boot() {
  let session;
  try {
    session = await api.session();
  } catch (error) {
    if (error.signedOut) return reload();
    setTimeout(reload, SESSION_RETRY_MS);
    return tell("unreachable", { retry: reload });
  }
  const owner = `${session.study.id}/${session.rater.name}`;
  const tabs = new Tabs(owner);
  const [mine, store] = await Promise.all([tabs.claim(), openStore()]);
  const app = new App(session, owner, store);
  const aside = () => tell("otherTab", { take: () => (tabs.take(), reload()) });
  tabs.onLost = () => (app.stop(), aside());
  return mine ? app.start() : aside();
}

class App {
  #leaving = false;
  #pausedTimer = 0;
  #trouble = ""; // the message to show when no page is left, if the queue has trouble

  constructor(session, owner, store) {
    this.session = session;
    this.task = session.task;
    this.keys = new Keys();
    this.zoom = new Zoom($("stage"), $("tool-zoom"));
    this.pause = new BreakTimer(breakMinutes());
    this.history = new History(store, owner);
    this.outbox = new Outbox(store, api, owner, () => this.outboxChanged());
    this.status = new Status(this.outbox);
    this.refusedList = new RefusedList(this.outbox);
    this.help = new Help(this.keys, () => this.drawButtons());
  }

  async start() {
    this.bind();
    await Promise.all([this.outbox.load(), this.history.load()]);
    this.outbox.start();
    this.status.setProgress(this.session.progress);
    if (this.outbox.others) this.tellOthers();
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
      return this.leave("/"); // it has changed again: read the newest
    }
    return this.begin();
  }

  async begin() {
    this.queue = new Queue(api, this.task, () => this.knownPages(), {
      prepare: (page) => this.prepare(page),
      changed: () => this.rating?.next(),
      trouble: (error) => this.trouble(error),
      broken: (page, error) => this.broken(page, error),
      progress: (progress) => this.well(progress),
    });
    const { outbox, queue, history, zoom } = this;
    const parts = { outbox, queue, history, zoom, guidelineVersion: this.task.guideline_version };
    this.rating = new Rating(parts, {
      answered: () => this.answered(),
      empty: (coming) => this.empty(coming),
    });
    this.drawButtons();
    this.drawStrip();
    await outbox.drain(DRAIN_MS);
    this.queue.fill();
    this.rating.next();
  }

  /** Another tab rates: nothing more is sent or answered here. */
  stop() {
    this.#leaving = true;
    this.outbox.stop();
    this.queue?.stop();
    this.rating = undefined;
  }

  // what the parts tell each other

  /** Join what the server says of a page with answers that are still on their way. */
  prepare(page) {
    page.answers = {};
    this.history.complete(page);
    for (const { vote, page_id } of this.outbox.waiting) {
      const item = itemsOf(page).find(({ item_id }) => item_id === vote.item_id);
      if (!item || page_id !== page.page_id) continue;
      if (vote.value === "retracted") {
        delete page.answers[vote.item_id];
        item.supersedes = vote.id;
      } else page.answers[vote.item_id] = { vote_id: vote.id, value: vote.value };
    }
    return itemsOf(page).some((item) => !page.answers[item.item_id]);
  }

  /** Pages the server must not send again: on screen, or answered and still on their way. */
  knownPages() {
    const open = new Map(this.outbox.waiting.map((record) => [record.page_id, record.open]));
    const answered = [...open].filter(([, n]) => n === 0).map(([id]) => id);
    const shown = this.rating.page?.page_id;
    return shown ? [...new Set([shown, ...answered])] : answered;
  }

  outboxChanged() {
    this.status.update();
    for (const { vote } of this.outbox.refused) this.history.forget(vote.id);
    if (this.outbox.closed) return this.closed();
    if (this.outbox.state === "paused") this.paused();
    if (this.outbox.state !== "saved" || this.rating?.page !== null) return;
    this.queue.fill();
    this.rating.next();
  }

  answered() {
    this.drawStrip();
    if (!this.pause.answered()) return;
    const text = `You have rated for ${this.pause.minutes} minutes. A short break keeps your eye fresh.`;
    view.notice("break", "cup", text, [], () => {});
  }

  empty(coming) {
    if (coming) return undefined;
    if (!this.#trouble && (this.queue.finished || this.queue.starved)) {
      const last = this.queue.finished ? "finished" : "starved";
      return this.tell(this.outbox.waiting.length ? "almost" : last);
    }
    return this.#trouble ? this.tell(this.#trouble) : view.showView("rating");
  }

  trouble(error) {
    this.status.trouble(error);
    if (error.status === 423) return this.paused();
    if (error.status === 410) return this.closed();
    if (error.status === 428) return this.leave("/");
    this.#trouble = error.offline ? "offline" : error.signedOut ? "signedOut" : "unavailable";
    return this.rating.next();
  }

  well(progress) {
    this.#trouble = "";
    this.status.well(progress);
  }

  async broken(page, error) {
    const text = "A picture could not be loaded; its page was passed over and reported.";
    view.notice("broken", "warn", text, [], () => {});
    const message = error.message.slice(0, 200);
    await api.post("/api/release", { page_ids: [page.page_id], broken: true, message }).catch(() => {});
    this.queue.fill();
  }

  /** Try everything again at once; a session that was renewed elsewhere is taken up. */
  async retry() {
    const session = await api.session().catch((error) => this.status.trouble(error));
    if (session && session.rater.name !== this.session.rater.name) return this.leave("/");
    this.outbox.nudge();
    return this.queue?.fill();
  }

  // whole-page messages

  tell(name) {
    const run = { retry: () => this.retry(), leave: (url) => this.leave(url), reload };
    tell(name, run, this.outbox.waiting.length);
  }

  closed() {
    this.queue?.stop();
    this.tell("closed");
  }

  paused() {
    this.tell("paused");
    clearTimeout(this.#pausedTimer);
    this.#pausedTimer = setTimeout(() => this.unpause(), PAUSE_CHECK_MS);
  }

  async unpause() {
    const session = await api.session().catch(() => null);
    if (!session || session.task?.paused) return this.paused();
    this.outbox.nudge();
    if (this.rating?.page) view.showView("rating");
    return this.queue?.fill();
  }

  tellOthers() {
    const n = this.outbox.others;
    const answers = n === 1 ? "1 answer of somebody else waits" : `${n} answers of somebody else wait`;
    view.notice("others", "lock", `${answers} on this device for their sign-in.`, [], () => {});
  }

  // page

  drawButtons() {
    view.drawTools(this.keys);
    const answer = (value, reason, event) => this.rating?.answer(value, reason, event);
    view.drawAnswers(this.task.kind, this.task.answers, this.keys, answer);
    view.setReady(Boolean(this.rating?.page));
  }

  drawStrip() {
    const back = (entry) => this.rating.undo(entry);
    view.drawStrip(this.history.entries, (entry) => this.rating.thumb(entry), back);
    $("tool-undo").setAttribute("aria-disabled", String(this.history.entries.length === 0));
  }

  bind() {
    bindSettings(this.pause);
    for (const name of ["undo", "zoom", "guide", "help"]) {
      $(`tool-${name}`).onclick = () => this.act(name);
    }
    $("tool-guide").hidden = !this.task?.guideline_html;
    $("saved-retry").onclick = () => this.retry();
    $("saved-sign-in").onclick = () => (this.#leaving = true);
    $("refused-open").onclick = () => this.refusedList.open();
    for (const field of document.querySelectorAll("[data-csrf]")) field.value = api.csrf;
    document.addEventListener("keydown", (event) => this.pressed(event));
    window.addEventListener("online", () => this.retry());
    window.addEventListener("focus", () => this.outbox.state === "signed_out" && this.retry());
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

  act(action) {
    if (action === "help") return this.help.open(this.task?.kind ?? "rate");
    if (action === "guide") return this.task?.guideline_html && openGuideline(this.task.guideline_html);
    if (action === "undo") return this.rating?.undo();
    if (!this.rating || $("rating").hidden) return undefined;
    if (action === "zoom") return this.zoom.toggle();
    const [value, reason] = action in view.REASONS ? ["skip", action] : [action, ""];
    return this.task.answers.includes(value) && this.rating.answer(value, reason);
  }

  warn(event) {
    if (!this.#leaving && this.outbox.waiting.length) event.preventDefault();
  }

  /** Go to another page on purpose: what is unsent stays in the browser. */
  leave(url) {
    this.#leaving = true;
    location.assign(url);
  }
}

navigator.serviceWorker?.register("/worker.js").catch(() => {}); // none over plain http
boot();
