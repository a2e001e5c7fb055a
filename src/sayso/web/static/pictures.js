// Pictures fetched and decoded before they are needed.

import { fetchPicture } from "./api.js";

const GONE = new Set([404, 410, 422]);

/** Pictures of one page, kept as decoded elements; `state`: loading | ready | failed | broken. */
export class PageImages {
  state = "loading";
  error = null;
  elements = new Map(); // url → HTMLImageElement

  constructor(page) {
    this.slots = slotsOf(page);
    this.ready = this.load();
  }

  /** Fetch and decode what is missing; may be called again after a failure. */
  async load() {
    this.state = "loading";
    try {
      await Promise.all(this.slots.map((slot) => this.#one(slot)));
      this.state = "ready";
    } catch (error) {
      this.error = error;
      this.state = GONE.has(error.status) || error.name === "EncodingError" ? "broken" : "failed";
    }
    return this.state;
  }

  /** Let the browser free the memory. */
  drop() {
    for (const element of this.elements.values()) URL.revokeObjectURL(element.src);
    this.elements.clear();
  }

  async #one({ url, width, height }) {
    if (this.elements.has(url)) return;
    const element = new Image(width, height);
    element.src = URL.createObjectURL(await fetchPicture(url));
    element.draggable = false;
    await element.decode();
    this.elements.set(url, element);
  }
}

/** Every picture of a page: {url, width, height}. */
export function slotsOf(page) {
  if (page.kind === "compare") return [...page.left, ...page.right];
  return page.items.map((item) => item.image);
}
