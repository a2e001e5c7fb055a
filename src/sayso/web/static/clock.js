// How long the rater looked: a monotonic clock, so that a jump of the wall clock does no harm.

/** Time since `start`, and how much of it the tab was hidden. */
export class Stopwatch {
  #from = 0;
  #startedAt = 0;
  #hidden = 0;
  #hiddenSince = null;

  constructor() {
    document.addEventListener("visibilitychange", () => this.#turn());
  }

  start() {
    this.#from = performance.now();
    this.#startedAt = Date.now();
    this.#hidden = 0;
    this.#hiddenSince = document.hidden ? this.#from : null;
  }

  /** {shown_at, answered_at} in ms since the epoch; {latency_ms, hidden_ms} in ms. */
  read() {
    const now = performance.now();
    const hidden = this.#hidden + (this.#hiddenSince === null ? 0 : now - this.#hiddenSince);
    const elapsed = now - this.#from;
    return {
      shown_at: this.#startedAt,
      answered_at: this.#startedAt + Math.round(elapsed),
      latency_ms: Math.max(0, Math.round(elapsed - hidden)),
      hidden_ms: Math.round(hidden),
    };
  }

  #turn() {
    const now = performance.now();
    if (document.hidden) this.#hiddenSince = now;
    else if (this.#hiddenSince !== null) {
      this.#hidden += now - this.#hiddenSince;
      this.#hiddenSince = null;
    }
  }
}
