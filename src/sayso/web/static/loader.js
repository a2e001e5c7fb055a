// Loads pictures in the order in which the rater needs them; what has come is never loaded again.

import { ApiError, fetchPicture } from "./api.js";

const MOST = 3; // at a time
const SLOW_MS = 500; // a picture that took longer, for its share of the line, came over a slow one

/** The bytes of one picture. After a break only the rest is asked for. */
export class Download {
  received = 0;
  total = 0; // 0: not known yet
  #url;
  #parts = [];
  #type = "";
  #onBytes;

  /** @param onBytes called with this download when bytes have come */
  constructor(url, onBytes) {
    this.#url = url;
    this.#onBytes = onBytes;
  }

  /** Get what is missing: the whole as a blob. */
  async run() {
    await fetchPicture(
      this.#url,
      this.received,
      (response) => this.#begin(response),
      (bytes) => {
        this.#parts.push(bytes);
        this.received += bytes.length;
        this.#onBytes(this);
      },
    );
    return new Blob(this.#parts, { type: this.#type });
  }

  #begin({ headers }) {
    const range = /^bytes (\d+)-\d+\/(\d+)$/.exec(headers.get("Content-Range") ?? "");
    const first = Number(range?.[1] ?? 0);
    const total = Number(range?.[2] ?? headers.get("Content-Length"));
    const another = first > 0 && total !== this.total;
    if (first !== this.received || another) [this.#parts, this.received] = [[], 0];
    this.total = total;
    this.#type = headers.get("Content-Type");
    // the rest of a file that has changed: the next try begins from its start
    if (another) throw new ApiError(503, { message: "The image has changed." });
  }
}

/**
 * A few downloads at a time. Pictures of later pages wait for those of the page that the rater looks
 * at, and on a slow line for those of every page before: side by side all would come later. A line
 * is slow until it is known to be fast.
 */
export class Loader {
  #waiting = [];
  #running = new Set();
  #slow = true;

  /**
   * @param download Download
   * @param rank () → when it is needed, 0 is now; Infinity: not at present. It may change.
   */
  get(download, rank) {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ download, rank, resolve, reject });
      this.wake();
    });
  }

  /** Begin what can begin; to be called when a rank has changed. */
  wake() {
    while (this.#running.size < MOST) {
      const job = this.#choose();
      if (!job) return;
      this.#run(job);
    }
  }

  #choose() {
    const [first] = this.#waiting.toSorted((one, other) => one.rank() - other.rank());
    if (!first || first.rank() === Infinity) return undefined;
    const soonest = Math.min(...[...this.#running].map((job) => job.rank()), first.rank());
    const alone = this.#slow || soonest === 0;
    return alone && first.rank() > soonest ? undefined : first;
  }

  async #run(job) {
    this.#waiting = this.#waiting.filter((other) => other !== job);
    this.#running.add(job);
    const began = performance.now();
    try {
      job.resolve(await job.download.run());
      this.#slow = performance.now() - began > SLOW_MS * this.#running.size;
    } catch (error) {
      job.reject(error);
    }
    this.#running.delete(job);
    this.wake();
  }
}
