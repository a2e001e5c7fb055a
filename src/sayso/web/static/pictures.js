// Pictures of a page, fetched and decoded before they are needed.

import { Download } from "./loader.js";

const GONE = new Set([404, 410, 422]);

/** Pictures of one page, kept as decoded elements; `state`: loading | ready | failed | broken. */
export class PageImages {
  state = "loading";
  error = null;
  elements = new Map(); // url → HTMLImageElement
  onBytes = () => {}; // called when bytes of a picture have come
  #loader;
  #rank;
  #downloads = new Map(); // url → {download, done}, while it loads or has failed
  #px = new Map(); // url → for how many pixels of the screen it was loaded, 0 is the original

  /**
   * @param loader Loader
   * @param rank () → see Loader.get
   * @param px for how many pixels of the screen the pictures are, on their longest side
   */
  constructor(page, loader, rank, px) {
    this.page = page;
    this.slots = slotsOf(page);
    this.#loader = loader;
    this.#rank = rank;
    this.ready = this.load(px);
  }

  /** Fetch and decode what is missing; may be called again after a failure. */
  async load(px) {
    this.state = "loading";
    const missing = this.slots.filter(({ url }) => !this.elements.has(url));
    this.error = await this.#all(missing, px);
    const { error } = this;
    if (!error) this.state = "ready";
    else this.state = GONE.has(error.status) || error.name === "EncodingError" ? "broken" : "failed";
    return this.state;
  }

  /** Load pictures that were too small for `px` pixels of the screen anew, 0: the originals. */
  async sharpen(px) {
    const enough = (loaded) => loaded === 0 || (px > 0 && loaded >= px);
    const blurred = this.slots.filter(({ url }) => !enough(this.#px.get(url) ?? 0));
    if (blurred.length) await this.#all(blurred, px);
    return blurred.length > 0;
  }

  /** How much of a picture has come, in [0, 1]; undefined if that is not known. */
  progress(url) {
    const { received = 0, total = 0 } = this.#downloads.get(url)?.download ?? {};
    return total ? received / total : undefined;
  }

  /** Let the browser free the memory. */
  drop() {
    for (const element of this.elements.values()) URL.revokeObjectURL(element.src);
    this.elements.clear();
  }

  async #all(slots, px) {
    const ends = await Promise.allSettled(slots.map((slot) => this.#one(slot, px)));
    return ends.find(({ reason }) => reason)?.reason ?? null;
  }

  async #one({ url, width, height }, px) {
    const blob = await this.#bytes(url, px);
    const element = new Image(width, height);
    element.src = URL.createObjectURL(blob);
    element.draggable = false;
    await element.decode();
    URL.revokeObjectURL(this.elements.get(url)?.src);
    this.elements.set(url, element);
    // a picture that was not made smaller for the line is the original
    this.#px.set(url, blob.type === "image/webp" ? px : 0);
  }

  async #bytes(url, px) {
    const asked = px ? `${url}?px=${px}` : url;
    const known = this.#downloads.get(url);
    const download = known?.asked === asked ? known.download : new Download(asked, () => this.onBytes(url));
    this.#downloads.set(url, { asked, download });
    const blob = await this.#loader.get(download, this.#rank);
    this.#downloads.delete(url);
    return blob;
  }
}

/** Every picture of a page: {url, width, height}. */
export function slotsOf(page) {
  if (page.kind === "compare") return [...page.left, ...page.right];
  return page.items.map((item) => item.image);
}
