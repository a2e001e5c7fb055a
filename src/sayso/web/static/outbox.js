// Votes on their way: kept in the browser until the server says that they are stored.
//
// One record per vote, sent one at a time in the order given. A record leaves only after the
// server's acknowledgement, or by the rater's own hand from the list of refused ones.

import { stateOf } from "./status.js";

const FIRST_WAIT_MS = 1000;
const LONGEST_WAIT_MS = 30_000;
const PAUSED_WAIT_MS = 15_000;
const REFUSED = new Set([400, 403, 404, 409, 410, 413, 422]);

/**
 * @param store from openStore
 * @param api Api
 * @param owner whose votes these are: study and rater; those of others stay untouched
 * @param onChange called with this outbox after each change
 */
export class Outbox {
  waiting = [];
  refused = [];
  others = 0;
  closed = false; // the server kept a vote and wants no more
  state = "saved"; // saved | sending | offline | slow | unavailable | signed_out | other_rater | paused
  retryAt = 0;
  progress = null;

  #store;
  #api;
  #owner;
  #onChange;
  #running = false;
  #wake = () => {};
  #failures = 0;

  constructor(store, api, owner, onChange) {
    this.#store = store;
    this.#api = api;
    this.#owner = owner;
    this.#onChange = onChange;
  }

  get lasting() {
    return this.#store.lasting;
  }

  get summary() {
    return { waiting: this.waiting.length, retryAt: this.retryAt };
  }

  /** Votes that the server's own progress does not count yet. */
  get unsentProgress() {
    return this.waiting.reduce((sum, record) => sum + record.counts, 0);
  }

  /** Read what an earlier visit left. */
  async load() {
    const records = await this.#store.all("outbox");
    const mine = records.filter((record) => record.owner === this.#owner);
    this.others = records.length - mine.length;
    this.waiting = mine.filter((record) => !record.refusal);
    this.refused = mine.filter((record) => record.refusal);
    this.#set(this.waiting.length ? "sending" : "saved");
  }

  /**
   * Keep a vote and send it when its turn comes.
   * @param vote the body for the server
   * @param about {page_id, prompt, counts}: what the page needs to know of it later
   */
  add(vote, about) {
    const record = { owner: this.#owner, vote, ...about };
    record.written = this.#store.put("outbox", { owner: this.#owner, vote, ...about }).then(
      (seq) => (record.seq = seq),
      () => (this.#store.lasting = false),
    );
    this.waiting.push(record);
    if (this.state === "saved") this.state = "sending";
    this.#changed();
    this.#wake();
  }

  /** Send until stopped. */
  async start() {
    if (this.#running) return;
    this.#running = true;
    while (this.#running) {
      const record = this.waiting[0];
      if (record) await this.#send(record);
      else await this.#sleep();
    }
  }

  stop() {
    this.#running = false;
    this.#wake();
  }

  /** Try at once: the net is back, or somebody signed in. */
  nudge() {
    this.#failures = 0;
    this.#wake();
  }

  /** Wait until nothing waits any more, or `ms` are over, or sending is stuck. */
  async drain(ms) {
    const end = performance.now() + ms;
    while (this.waiting.length && this.state === "sending" && performance.now() < end) {
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  /** Put a refused vote back into the line. */
  async again(record) {
    this.refused = this.refused.filter((other) => other !== record);
    delete record.refusal;
    await this.#keep(record);
    this.waiting.push(record);
    this.#set("sending");
    this.nudge();
  }

  /** Forget a refused vote; only the rater decides that. */
  async remove(record) {
    this.refused = this.refused.filter((other) => other !== record);
    await this.#store.delete("outbox", record.seq);
    this.#changed();
  }

  async #send(record) {
    try {
      const reply = await this.#api.post("/api/votes", record.vote);
      this.progress = reply.progress ?? this.progress;
    } catch (error) {
      return this.#failed(record, error);
    }
    return this.#sent(record);
  }

  /** The server has it. If the browser cannot forget it, it is sent once more, to no effect. */
  async #sent(record) {
    await record.written;
    await this.#store.delete("outbox", record.seq).catch(() => {});
    this.#failures = 0;
    this.waiting = this.waiting.filter((other) => other !== record);
    this.#set(this.waiting.length ? "sending" : "saved");
  }

  async #failed(record, error) {
    if (error.stored) {
      this.closed = true;
      return this.#sent(record);
    }
    if (REFUSED.has(error.status) && !error.retry) return this.#refuse(record, error);
    this.#failures += 1;
    const backoff = Math.min(FIRST_WAIT_MS * 2 ** (this.#failures - 1), LONGEST_WAIT_MS);
    const jittered = backoff * (0.8 + 0.4 * Math.random());
    const paused = error.status === 423;
    const wait = error.retryAfterMs || (paused ? PAUSED_WAIT_MS : jittered);
    this.retryAt = Date.now() + wait;
    this.#set(stateOf(error));
    await this.#sleep(wait);
    return undefined;
  }

  async #refuse(record, error) {
    record.refusal = { status: error.status, code: error.code, message: error.message };
    this.#failures = 0;
    this.waiting = this.waiting.filter((other) => other !== record);
    this.refused.push(record);
    await this.#keep(record);
    this.#set(this.waiting.length ? "sending" : "saved");
  }

  async #keep(record) {
    await record.written;
    const { written: _, ...plain } = record;
    await this.#store.put("outbox", plain).catch(() => {});
  }

  #sleep(ms) {
    return new Promise((resolve) => {
      const timer = ms === undefined ? undefined : setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #set(state) {
    this.state = state;
    this.#changed();
  }

  #changed() {
    this.#onChange(this);
  }
}
