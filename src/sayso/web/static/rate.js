// The rating page: starts the parts and joins them.

import { Api } from "./api.js";
import { BreakTimer } from "./clock.js";
import { Help, RefusedList, openGuideline } from "./dialogs.js";
import { History } from "./history.js";
import { Keys } from "./keys.js";
import { Outbox } from "./outbox.js";
import { breakMinutes, bindSettings } from "./settings.js";
import { Queue } from "./queue.js";
import { Rating, itemsOf } from "./rating.js";
import { Status } from "./status.js";
import { openStore } from "./store.js";
import { Tabs } from "./tabs.js";
import * as view from "./view.js";
import { Zoom } from "./zoom.js";

const SESSION_RETRY_MS = 5000;
const PAUSE_CHECK_MS = 15_000;
const $ = (id) => document.getElementById(id);

const api = new Api();

async function boot() {
  let session;
  try {
    session = await api.session();
  } catch (error) {
    return noSession(error);
  }
  const owner = `${session.study.id}/${session.rater.name}`;
  const tabs = new Tabs(owner, () => location.reload());
  const [mine, store] = await Promise.all([tabs.claim(), openStore()]);
  if (!mine) return otherTab(tabs);
  return new App(session, owner, store).start();
}

function noSession(error) {
  if (error.signedOut) return location.assign("/sign-in?next=/");
  view.showMessage("offline", "The server cannot be reached", "Trying again in a few seconds.", [
    { label: "Try now", run: () => location.reload() },
  ]);
  setTimeout(() => location.reload(), SESSION_RETRY_MS);
  return undefined;
}

function otherTab(tabs) {
  const take = () => {
    tabs.take();
    location.reload();
  };
  const text = "You are rating in another tab of this browser. One tab at a time keeps your order.";
  view.showMessage("tabs", "Open in another tab", text, [{ label: "Rate here instead", run: take }]);
}

class App {
  #leaving = false;
  #pausedTimer = 0;

  constructor(session, owner, store) {
    this.session = session;
    this.task = session.task;
    this.owner = owner;
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
    if (!this.task) return this.message("done", "Nothing to rate now", "There is no open task for you.");
    await Promise.all([this.outbox.load(), this.history.load()]);
    this.outbox.start();
    this.status.setProgress(this.session.progress);
    if (this.outbox.others) this.tellOthers();
    if (this.task.closed) return this.closed();
    if (this.task.guideline_version && !this.task.guideline_accepted) return this.guideline();
    return this.begin();
  }

  async begin() {
    this.queue = new Queue(api, () => this.knownPages(), {
      prepare: (page) => this.prepare(page),
      changed: () => this.rating.next(),
      trouble: (error) => this.trouble(error),
      broken: (page, error) => this.broken(page, error),
      progress: (progress) => this.status.well(progress),
    });
    const { outbox, queue, history, zoom } = this;
    const guidelineVersion = this.task.guideline_version;
    this.rating = new Rating(
      { outbox, queue, history, zoom, guidelineVersion },
      { answered: () => this.answered(), empty: (some) => this.empty(some), shown: () => {} },
    );
    this.drawButtons();
    this.drawStrip();
    await outbox.drain(3000);
    this.queue.fill();
    this.rating.next();
  }

  // what the parts tell each other

  /** Join what the server says of a page with answers that are still on their way. */
  prepare(page) {
    page.answers = {};
    for (const item of itemsOf(page)) if (item.answered) page.answers[item.item_id] = item.answered;
    for (const { vote, page_id } of this.outbox.waiting) {
      if (page_id !== page.page_id) continue;
      const item = itemsOf(page).find(({ item_id }) => item_id === vote.item_id);
      if (!item) continue;
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
    if (this.outbox.state === "paused") this.paused();
    if (this.outbox.state === "saved" && this.rating && !this.rating.page) this.rating.next();
  }

  answered() {
    this.drawStrip();
    if (!this.pause.answered()) return;
    const text = `You have rated for ${this.pause.minutes} minutes. A short break keeps your eye fresh.`;
    view.notice("break", "cup", text, [], () => {});
  }

  empty(coming) {
    if (this.queue.finished) return this.finished();
    if (!coming && this.#trouble) return this.#trouble();
    if (!coming) view.showView("rating");
    return undefined;
  }

  trouble(error) {
    this.status.trouble(error);
    this.#trouble = null;
    if (error.status === 423) return this.paused();
    if (error.status === 410) return this.closed();
    if (error.status === 428) return this.renewGuideline();
    if (error.offline) this.#trouble = () => this.offline();
    if (error.signedOut) this.#trouble = () => this.signedOut();
    if (!this.rating.page) this.rating.next();
    return undefined;
  }
  #trouble = null;

  async broken(page, error) {
    const text = "A picture could not be loaded; its page was passed over and reported.";
    view.notice("broken", "warn", text, [], () => {});
    const message = error.message.slice(0, 200);
    await api.post("/api/release", { page_ids: [page.page_id], broken: true, message }).catch(() => {});
    this.queue.fill();
  }

  /** Try everything again at once; a session that was renewed elsewhere is taken up. */
  async retry() {
    try {
      const session = await api.session();
      if (session.rater.name !== this.session.rater.name) return this.leave("/");
      this.status.well();
    } catch (error) {
      this.status.trouble(error);
    }
    this.outbox.nudge();
    return this.queue?.fill();
  }

  // whole-page messages

  message(symbol, title, text, actions) {
    view.showMessage(symbol, title, text, actions);
  }

  async finished() {
    if (this.outbox.waiting.length) {
      return this.message("sync", "Almost done", "Your last answers are being saved.");
    }
    const again = { label: "Look for more", run: () => location.reload() };
    return this.message("done", "All done, thank you", "Every picture for you is rated.", [again]);
  }

  offline() {
    const n = this.outbox.waiting.length;
    const kept = n ? ` ${n === 1 ? "1 answer waits" : `${n} answers wait`} safely on this device.` : "";
    const text = `All pictures loaded so far are rated. More come when the connection is back.${kept}`;
    this.message("offline", "You are offline", text, [{ label: "Try now", run: () => this.retry() }]);
  }

  signedOut() {
    const text = "Sign in again to go on. Answers that are not sent yet stay on this device.";
    const go = { label: "Sign in", run: () => this.leave("/sign-in?next=/") };
    this.message("lock", "You are signed out", text, [go]);
  }

  paused() {
    const text = "The organiser has paused this task. It goes on here by itself; your answers are kept.";
    this.message("pause", "Paused", text);
    clearTimeout(this.#pausedTimer);
    this.#pausedTimer = setTimeout(() => this.unpause(), PAUSE_CHECK_MS);
  }

  async unpause() {
    const session = await api.session().catch(() => null);
    if (!session || session.task?.paused) return this.paused();
    this.outbox.nudge();
    if (this.rating.page) view.showView("rating");
    return this.queue.fill();
  }

  closed() {
    const text = "This task is closed; no more answers are needed. Thank you for your work.";
    this.message("done", "Closed", text);
  }

  tellOthers() {
    const n = this.outbox.others;
    const text = `${n === 1 ? "1 answer" : `${n} answers`} of somebody else wait on this device for their sign-in.`;
    view.notice("others", "lock", text, [], () => {});
  }

  // guideline

  guideline() {
    $("begin-text").innerHTML = this.task.guideline_html;
    $("begin").hidden = false;
    $("begin-go").onclick = () => this.accept();
    $("begin").querySelector("h1").focus();
  }

  async accept() {
    try {
      await api.post("/api/guideline/accept", { version: this.task.guideline_version });
      $("begin").hidden = true;
      this.task.guideline_accepted = true;
      await this.begin();
    } catch (error) {
      this.status.trouble(error);
      $("begin-said").textContent = error.message;
    }
  }

  async renewGuideline() {
    await this.outbox.drain(3000);
    this.leave("/");
  }

  // page

  drawButtons() {
    const allowed = this.task.answers;
    view.drawTools(this.keys);
    view.drawAnswers(this.task.kind, allowed, this.keys, (value, reason, event) =>
      this.rating.answer(value, reason, event),
    );
    view.setReady(Boolean(this.rating?.page));
  }

  drawStrip() {
    const back = (entry) => this.rating.undo(entry);
    view.drawStrip(this.history.entries, (entry) => this.rating.thumb(entry), back);
    $("tool-undo").setAttribute("aria-disabled", String(this.history.entries.length === 0));
  }

  bind() {
    bindSettings(this.pause);
    $("saved-retry").onclick = () => this.retry();
    $("saved-sign-in").onclick = () => (this.#leaving = true);
    $("refused-open").onclick = () => this.refusedList.open();
    $("tool-undo").onclick = () => this.act("undo");
    $("tool-zoom").onclick = () => this.act("zoom");
    $("tool-guide").onclick = () => this.act("guide");
    $("tool-help").onclick = () => this.act("help");
    $("tool-guide").hidden = !this.task?.guideline_html;
    for (const field of document.querySelectorAll("[data-csrf]")) field.value = api.csrf;
    document.addEventListener("keydown", (event) => this.pressed(event));
    window.addEventListener("online", () => this.retry());
    window.addEventListener("focus", () => this.outbox.state === "signed_out" && this.retry());
    window.addEventListener("pageshow", (event) => event.persisted && location.reload());
    window.addEventListener("beforeunload", (event) => this.warn(event));
  }

  pressed(event) {
    const onButton = event.target.closest?.("button, a");
    if (event.repeat && onButton && ["Enter", " "].includes(event.key)) event.preventDefault();
    if (event.repeat && event.key !== "Backspace" && !event.key.startsWith("Arrow")) return;
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
    if (!this.rating || $("rating").hidden) return action === "undo" && this.rating?.undo();
    if (action === "undo") return this.rating.undo();
    if (action === "zoom") return this.zoom.toggle();
    if (action in view.REASONS) return this.task.answers.includes("skip") && this.rating.answer("skip", action);
    return this.task.answers.includes(action) && this.rating.answer(action);
  }

  warn(event) {
    if (this.#leaving || this.outbox.waiting.length === 0) return;
    event.preventDefault();
  }

  /** Go to another page on purpose: what is unsent stays in the browser. */
  leave(url) {
    this.#leaving = true;
    location.assign(url);
  }
}

boot();
