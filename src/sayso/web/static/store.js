// IndexedDB as promises. What stands here survives a reload, a crash and the end of a session.

const NAME = "sayso";
const VERSION = 1;
const OPEN_MS = 3000; // some browsers never respond, such as those with a damaged profile

/** Open the browser's store; `lasting` is false if the browser keeps nothing (private window). */
export async function openStore() {
  try {
    return new Store(await open());
  } catch {
    return new MemoryStore();
  }
}

function open() {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open(NAME, VERSION);
    opening.onupgradeneeded = () => {
      opening.result.createObjectStore("outbox", { keyPath: "seq", autoIncrement: true });
      opening.result.createObjectStore("history", { keyPath: "owner" });
    };
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = opening.onblocked = () => reject(opening.error);
    setTimeout(reject, OPEN_MS, new Error("the browser's database does not open"));
  });
}

class Store {
  lasting = true;
  #db;

  constructor(db) {
    this.#db = db;
  }

  all(table) {
    return this.#run(table, "readonly", (store) => store.getAll());
  }

  get(table, key) {
    return this.#run(table, "readonly", (store) => store.get(key));
  }

  put(table, record) {
    return this.#run(table, "readwrite", (store) => store.put(record));
  }

  delete(table, key) {
    return this.#run(table, "readwrite", (store) => store.delete(key));
  }

  #run(table, mode, work) {
    return new Promise((resolve, reject) => {
      const transaction = this.#db.transaction(table, mode, { durability: "strict" });
      const request = work(transaction.objectStore(table));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  }
}

class MemoryStore {
  lasting = false;
  #tables = { outbox: new Map(), history: new Map() };
  #seq = 0;

  async all(table) {
    return [...this.#tables[table].values()];
  }

  async get(table, key) {
    return this.#tables[table].get(key);
  }

  async put(table, record) {
    const key = record.owner && table === "history" ? record.owner : (record.seq ?? ++this.#seq);
    this.#tables[table].set(key, table === "outbox" ? { ...record, seq: key } : record);
    return key;
  }

  async delete(table, key) {
    this.#tables[table].delete(key);
  }
}
