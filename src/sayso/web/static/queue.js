// The pages ahead: leased, fetched and decoded while the rater looks at this one.

import { Loader } from "./loader.js";
import { PageImages } from "./pictures.js";

const AHEAD = { alone: 10, several: 5 }; // pages loaded beside the one on screen, at the least
const BATCH = 3; // asked for together, so that not every vote costs a second request
const MOST = 10; // that the server gives at once
const RETRY_MS = 2000;
const EMPTY_MS = 5000; // others have what is left: ask again, some of it may come back

/**
 * @param api Api
 * @param task {kind, images_per_page}: of small pages more are loaded
 * @param known () → ids of pages that must not come again (on screen, or rated and unsent)
 * @param on {prepare(page) → whether it wants votes, changed(), trouble(error),
 *            broken(page, error), progress(progress?)}
 * @param px (page) → for how many pixels of the screen its pictures are
 */
export class Queue {
  done = false;
  #shown = ""; // the page that the rater looks at or waits for
  #loader = new Loader();
  #px;
  #dry = false; // the last reply brought no page
  #held = false; // when it was asked for, this browser held pages, which the server counts as work
  #ahead;

  #api;
  #known;
  #on;
  #pages = []; // {page, images}
  #asking = false;
  #retry = 0;

  constructor(api, task, known, on, px) {
    this.#api = api;
    this.#ahead = task.kind === "rate" && task.images_per_page === 1 ? AHEAD.alone : AHEAD.several;
    this.#known = known;
    this.#on = on;
    this.#px = px;
  }

  /** Why no page comes: "" (one may) | finished | almost (only held ones) | starved (others work). */
  get end() {
    if (this.#pages.length || !this.#dry) return "";
    if (this.done) return "finished";
    return this.#held ? "almost" : "starved";
  }

  /** The page to show now, or undefined while none is loaded. Offline, a loaded one goes first. */
  take() {
    const first = this.#pages[0];
    const next = first?.images.state === "failed" ? this.#firstReady() : first;
    if (next?.images.state !== "ready") return undefined;
    this.#pages = this.#pages.filter((entry) => entry !== next);
    this.fill();
    return next;
  }

  /** What comes next, loaded or not: its frame can be drawn before its pictures arrive. */
  peek() {
    return this.#pages[0];
  }

  /** The rater looks at this page: its pictures come first. */
  show(page) {
    this.#shown = page?.page_id ?? "";
    this.#loader.wake();
  }

  /** The pictures of a page, which load as soon as they are the next that are needed. */
  imagesOf(page) {
    return new PageImages(page, this.#loader, () => this.#rank(page.page_id), this.#px(page));
  }

  #rank(pageId) {
    if (pageId === this.#shown) return 0;
    const place = this.#pages.findIndex((entry) => entry.page.page_id === pageId);
    return place === -1 ? Infinity : place + 1;
  }

  /** A page comes back, as the next one. */
  putBack(page, images) {
    this.#pages.unshift({ page, images: images ?? this.#load(page) });
    this.#loader.wake();
  }

  /** Ask for nothing any more. */
  stop() {
    clearTimeout(this.#retry);
    this.done = true;
    this.#pages = [];
  }

  has(pageId) {
    return this.#pages.some((entry) => entry.page.page_id === pageId);
  }

  /** Take one page out, wherever it stands. */
  pull(pageId) {
    const found = this.#pages.find((entry) => entry.page.page_id === pageId);
    this.#pages = this.#pages.filter((entry) => entry !== found);
    return found;
  }

  /** Ask for more pages if there are fewer than wanted, and for pictures that failed to load. */
  async fill() {
    clearTimeout(this.#retry);
    for (const { images } of this.#pages) if (images.state === "failed") this.#watch(images);
    if (this.#asking || this.done || this.#pages.length > this.#ahead) return;
    this.#asking = true;
    try {
      const request = this.#request();
      const reply = await this.#api.post("/api/next", request);
      this.#asking = false;
      this.#held = request.have.length > 0;
      this.#receive(reply);
    } catch (error) {
      this.#asking = false;
      this.#on.trouble(error);
      if (error.retry) this.#later(error.retryAfterMs);
    }
  }

  #request() {
    const have = [...this.#pages.map((entry) => entry.page.page_id), ...this.#known()];
    return { have, n: Math.min(MOST, this.#ahead + BATCH - this.#pages.length) };
  }

  #receive({ pages, done, progress }) {
    const known = new Set(this.#request().have);
    for (const page of pages) {
      const wanted = !known.has(page.page_id) && this.#on.prepare(page);
      if (!wanted) continue;
      const entry = { page };
      this.#pages.push(entry); // its place says when its pictures are needed
      entry.images = this.#load(page);
    }
    this.done = done;
    this.#dry = pages.length === 0;
    this.#on.progress(progress);
    this.#on.changed();
    if (pages.length || (this.#held && known.size === 0)) this.fill();
    else if (!done) this.#later(EMPTY_MS);
  }

  #load(page) {
    const images = this.imagesOf(page);
    this.#watch(images, images.ready);
    return images;
  }

  async #watch(images, loading = images.load(this.#px(images.page))) {
    const state = await loading;
    if (state === "ready") this.#on.progress(); // the connection is well
    if (state === "broken") {
      this.pull(images.page.page_id);
      this.#on.broken(images.page, images.error);
    }
    if (state === "failed") {
      this.#on.trouble(images.error);
      if (!images.error.signedOut) this.#later();
    }
    this.#on.changed();
  }

  #later(ms = 0) {
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.fill(), ms || RETRY_MS);
  }

  #firstReady() {
    return this.#pages.find((entry) => entry.images.state === "ready");
  }
}
