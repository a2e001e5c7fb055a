// A reminder to take a break, after half an hour of rating without one.

const AFTER_MS = 30 * 60_000;
const BREAK_MS = 5 * 60_000; // as long without a vote is a break

export class Breaks {
  #since = 0;
  #last = -Infinity;

  /** Note a vote: whether it is time for a break. */
  voted() {
    const now = performance.now();
    if (now - this.#last > BREAK_MS) this.#since = now;
    this.#last = now;
    if (now - this.#since < AFTER_MS) return false;
    this.#since = now; // once more after another half hour
    return true;
  }
}
