// The last votes, newest last: what Backspace and the strip of small pictures go back to.

const KEPT = 30;

/** Entries {page_id, item_id, vote_id, value} and the pages they belong to; survives a reload. */
export class History {
  entries = [];
  pages = {};
  #store;
  #owner;

  /** @param owner study, rater and task: a vote of another task is not asked about again */
  constructor(store, owner) {
    this.#store = store;
    this.#owner = owner;
  }

  async load() {
    const kept = await this.#store.get("history", this.#owner);
    // one that an earlier version of the page kept in another shape is left alone
    if (kept && Object.values(kept.pages).every((page) => page.votes))
      Object.assign(this, { entries: kept.entries, pages: kept.pages });
  }

  /**
   * A page that was rated in part comes back with its open items only: give it back the others,
   * with their votes, so that it looks as it did.
   */
  complete(page) {
    const known = this.pages[page.page_id];
    if (page.kind === "compare" || !known) return;
    const open = new Map(page.items.map((item) => [item.item_id, item]));
    const rated = known.items.filter(({ item_id }) => !open.has(item_id));
    if (!rated.every(({ item_id }) => known.votes[item_id])) return;
    page.items = known.items.map((item) => open.get(item.item_id) ?? item);
    for (const { item_id } of rated) page.votes[item_id] = known.votes[item_id];
  }

  add(page, entry) {
    this.entries = this.entries.filter((other) => other.item_id !== entry.item_id);
    this.entries.push({ page_id: page.page_id, ...entry });
    this.entries = this.entries.slice(-KEPT);
    this.pages[page.page_id] = page;
    this.#keep();
  }

  /** Take out an entry: the last one, or the one named. */
  take(entry = this.entries.at(-1)) {
    if (!entry) return undefined;
    this.entries = this.entries.filter((other) => other !== entry);
    return { entry, page: this.pages[entry.page_id] };
  }

  /** A vote was refused: there is nothing to go back to. */
  forget(voteId) {
    this.entries = this.entries.filter((entry) => entry.vote_id !== voteId);
    this.#keep();
  }

  /** Note that a page changed (a vote was taken back). */
  save(page) {
    this.pages[page.page_id] = page;
    this.#keep();
  }

  #keep() {
    const used = new Set(this.entries.map((entry) => entry.page_id));
    this.pages = Object.fromEntries(Object.entries(this.pages).filter(([id]) => used.has(id)));
    const record = { owner: this.#owner, entries: this.entries, pages: this.pages };
    this.#store.put("history", JSON.parse(JSON.stringify(record))).catch(() => {});
  }
}
