// The flow of pages: show, vote, go on, take back.

import { Stopwatch } from "./clock.js";
import * as stage from "./stage.js";
import * as view from "./view.js";

const GUARD_MS = 120; // after new pictures, so that one press never rates two
const KEPT_PAGES = 12; // pages whose pictures stay loaded for going back
const SLOW_MS = 3000; // pictures that take longer come over a slow line, and the page says so

/** The items of a page that want a vote each; a comparison has one. */
export function itemsOf(page) {
  return page.kind === "compare" ? [page] : page.items;
}

/** A random id (version 4 UUID), also where the page comes over plain http. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

/**
 * @param parts {outbox, queue, history, zoom, guidelineVersion}
 * @param on {voted(), takenBack(), empty(coming), slow(whether)}: after a vote, or after one was taken
 *           back; no page is loaded (`coming`: one will be); the pictures take their time
 */
export class Rating {
  page = null;
  #parts;
  #on;
  #images = null;
  #cursor = 0;
  #guardUntil = Infinity;
  #position = 0;
  #drawn = "";
  #kept = new Map(); // page_id → PageImages
  #thumbs = new Map(); // item_id → canvas
  #watch = new Stopwatch();
  #slow = 0;
  #followed = null; // the pictures that the rater waits for

  constructor(parts, on) {
    this.#parts = parts;
    this.#on = on;
    stage.followRoom(() => this.#sharpen());
    stage.whenSeen(() => view.setReady(this.page !== null));
    parts.zoom.onChange = () => (stage.layOut(), this.#sharpen());
  }

  /** Show the next loaded page, if there is none on screen. */
  next() {
    if (this.page) return;
    const entry = this.#parts.queue.take();
    if (entry) this.#show(entry);
    else this.#wait();
  }

  /** Rate the current picture, or the comparison. */
  vote(value, reason = "", event = undefined) {
    const doubleClick = event?.detail > 1;
    if (!this.page || doubleClick || performance.now() < this.#guardUntil) return;
    if (!stage.allSeen()) return this.#askToLook();
    const { page } = this;
    const item = itemsOf(page)[this.#cursor];
    const before = page.votes[item.item_id];
    const vote = this.#made(item, value, reason, before?.vote_id ?? item.supersedes ?? null);
    page.votes[item.item_id] = { vote_id: vote.id, value };
    this.#send(vote, before ? 0 : 1);
    this.#parts.history.add(page, {
      item_id: item.item_id,
      vote_id: vote.id,
      value,
      prompt: page.prompt,
    });
    this.#position += 1;
    view.flash(value);
    this.#goOn();
    this.#on.voted();
  }

  /** Take a vote back, the last one if none is named, and ask again. */
  undo(chosen) {
    const taken = this.#parts.history.take(chosen);
    if (!taken) return view.say("There is nothing to undo.");
    const { entry } = taken;
    const { page, images } = this.#bring(taken.page);
    const items = itemsOf(page);
    const index = items.findIndex((item) => item.item_id === entry.item_id);
    this.#watch.start();
    const vote = this.#made(items[index], "retracted", "", entry.vote_id, page);
    this.#send(vote, -1, page);
    items[index].supersedes = vote.id;
    delete page.votes[entry.item_id];
    this.#parts.history.save(page);
    view.say("Vote taken back.");
    this.#show({ page, images }, index);
    return this.#on.takenBack();
  }

  /** Ask about another picture of a group. */
  select(index) {
    if (!this.page || this.page.kind === "compare") return;
    this.#cursor = (index + this.page.items.length) % this.page.items.length;
    this.#ask();
  }

  step(by) {
    if (this.page?.items?.length > 1) this.select(this.#cursor + by);
  }

  /** A small picture of a rated item for the strip. */
  thumb(entry) {
    return this.#thumbs.get(entry.item_id);
  }

  #askToLook() {
    stage.scrollOn();
    view.say("There are more images below. Look at all of them first.");
  }

  #wait() {
    const coming = this.#parts.queue.peek();
    this.#parts.queue.show(coming?.page);
    if (coming) {
      this.#draw(coming.page);
      this.#follow(coming.images);
    }
    view.setReady(false);
    this.#on.empty(Boolean(coming));
  }

  /** Show how the pictures come in. */
  #follow(images) {
    if (images === this.#followed) return;
    this.#followed = images;
    clearTimeout(this.#slow);
    this.#slow = setTimeout(() => images.state === "loading" && this.#on.slow(true), SLOW_MS);
    images.onBytes = () => stage.drawArriving(images);
    stage.drawArriving(images);
  }

  /** The pictures on screen are as sharp as they are large: the original while zoomed. */
  async #sharpen() {
    const { page } = this;
    if (!page || this.#images.state !== "ready") return;
    const images = this.#images;
    const px = this.#parts.zoom.on ? 0 : stage.wantedPx(page);
    if ((await images.sharpen(px)) && this.page === page) stage.fillFrames(page, images);
  }

  async #show({ page, images }, index) {
    this.page = page;
    this.#images = images;
    this.#guardUntil = Infinity;
    this.#cursor = index ?? firstOpen(page, 0);
    this.#parts.queue.show(page);
    this.#draw(page);
    if (images.state !== "ready") {
      view.setReady(false);
      this.#follow(images);
    }
    const loaded = (await images.ready) === "ready" || (await images.load(stage.wantedPx(page))) === "ready";
    if (!loaded) return this.#lost(page);
    if (this.page !== page) return undefined;
    clearTimeout(this.#slow);
    this.#on.slow(false);
    stage.fillFrames(page, images);
    stage.drawGroup(page, this.#cursor, view.VALUES);
    view.setReady(stage.allSeen());
    await painted();
    this.#sharpen();
    if (this.page === page) this.#ask();
    return this.#keep(page, images);
  }

  /** From now on the current picture is asked about. */
  #ask() {
    stage.drawGroup(this.page, this.#cursor, view.VALUES);
    stage.noteShown(this.page.page_id, this.#cursor);
    this.#watch.start();
    this.#guardUntil = performance.now() + GUARD_MS;
  }

  #draw(page) {
    this.#parts.zoom.set(false);
    view.showView("rating");
    if (this.#drawn === page.page_id && page !== this.page) return;
    this.#drawn = page.page_id;
    view.drawPage(page, (i) => this.select(i));
  }

  #goOn() {
    const open = firstOpen(this.page, this.#cursor);
    if (open === -1) {
      this.page = null;
      this.next();
    } else {
      this.#cursor = open;
      this.#ask();
    }
  }

  /** Pictures of an earlier page are gone and cannot be loaded: leave it for later. */
  #lost(page) {
    if (this.page !== page) return;
    this.page = null;
    this.#parts.queue.putBack(page, this.#images);
    this.next();
  }

  /** Fetch a page of the history back; the one on screen goes back into the line. */
  #bring(page) {
    if (this.page?.page_id === page.page_id) return { page: this.page, images: this.#images };
    if (this.page) this.#parts.queue.putBack(this.page, this.#images);
    this.page = null;
    const waiting = this.#parts.queue.pull(page.page_id);
    if (waiting) return waiting;
    return { page, images: this.#kept.get(page.page_id) ?? this.#parts.queue.imagesOf(page) };
  }

  #made(item, value, reason, supersedes, page = this.page) {
    return {
      id: newId(),
      item_id: item.item_id,
      question: page.question,
      value,
      reason,
      ...this.#watch.read(),
      position: this.#position,
      guideline_version: this.#parts.guidelineVersion,
      supersedes,
    };
  }

  #send(vote, counts, page = this.page) {
    const open = itemsOf(page).filter((item) => !page.votes[item.item_id]).length;
    const about = { page_id: page.page_id, prompt: page.prompt, counts, open };
    this.#parts.outbox.add(vote, about);
  }

  #keep(page, images) {
    this.#kept.delete(page.page_id);
    this.#kept.set(page.page_id, images);
    for (const item of itemsOf(page)) this.#thumbs.set(item.item_id, thumbOf(page, item, images));
    for (const [id, old] of this.#kept) {
      if (this.#kept.size <= KEPT_PAGES) break;
      if (old === this.#images || this.#parts.queue.has(id)) continue;
      old.drop();
      this.#kept.delete(id);
    }
    if (this.#thumbs.size > 100) this.#thumbs.delete(this.#thumbs.keys().next().value);
  }
}

function firstOpen(page, from) {
  const items = itemsOf(page);
  for (let i = 0; i < items.length; i++) {
    const index = (from + i) % items.length;
    if (!page.votes[items[index].item_id]) return index;
  }
  return -1;
}

const THUMB_PX = 96;

/** A small square of the picture; of a comparison, half of each side. */
function thumbOf(page, item, images) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = THUMB_PX;
  const draw = canvas.getContext("2d");
  const urls = page.kind === "compare" ? [page.left[0].url, page.right[0].url] : [item.image.url];
  const width = THUMB_PX / urls.length;
  urls.forEach((url, i) => {
    const picture = images.elements.get(url);
    const cut = Math.min(picture.naturalWidth, picture.naturalHeight);
    const part = cut / urls.length;
    const [x, y] = [(picture.naturalWidth - part) / 2, (picture.naturalHeight - cut) / 2];
    draw.drawImage(picture, x, y, part, cut, i * width, 0, width, THUMB_PX);
  });
  return canvas;
}

/** After the browser has drawn what was just put into the page. */
function painted() {
  return new Promise((resolve) => {
    requestAnimationFrame(() => requestAnimationFrame(resolve));
  });
}
