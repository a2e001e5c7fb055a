// Requests to the server; every failure becomes an ApiError that says what to do next.

/** Where this site begins: a proxy may serve it under a path of its own. */
export const ROOT = new URL("..", import.meta.url).pathname;

const SILENCE_MS = 20_000; // without a byte; how long the whole takes does not matter
const OTHER_RATER = "other_rater";
const SILENT = "silent";
const BASE = document.body.dataset.api ?? "/api"; // reviewers decide through another interface

/** A request that failed. `status` is 0 if no reply came; `retry` says that repeating can help. */
export class ApiError extends Error {
  constructor(status, about = {}) {
    const { code = "", message = "", retry = false, retry_after_s = 0, stored = false } = about;
    super(message || `The server responded with ${status}.`);
    this.status = status;
    this.code = code;
    this.stored = stored; // it was kept although the task is closed
    this.retry = retry || status === 0 || status === 429 || status >= 500;
    this.retryAfterMs = retry_after_s * 1000;
  }

  get offline() {
    return this.status === 0 && !this.slow;
  }

  /** The connection stands, and nothing comes over it. */
  get slow() {
    return this.code === SILENT;
  }

  get signedOut() {
    return this.status === 401;
  }

  get otherRater() {
    return this.code === OTHER_RATER;
  }
}

/**
 * The server's JSON interface for one rater; keeps the CSRF token and renews it once when it is
 * refused. The token of somebody else who has signed in since is never taken: what is posted here
 * would be stored in their name.
 */
export class Api {
  owner = ""; // study and rater, from the first session on
  #csrf = "";

  async session() {
    const session = await request("/api/session");
    const owner = `${session.study.id}/${session.rater.name}`;
    this.owner ||= owner;
    if (owner !== this.owner) {
      const message = "Another rater has signed in here.";
      throw new ApiError(401, { code: OTHER_RATER, message });
    }
    this.#csrf = session.csrf;
    return session;
  }

  /** End the session of whoever is signed in here now. */
  async signOut() {
    const { csrf } = await request("/api/session");
    const body = new URLSearchParams({ csrf });
    await exchange("/out", { method: "POST", body }, () => {});
  }

  async post(path, body) {
    try {
      return await this.#post(path, body);
    } catch (error) {
      if (error.status !== 403 || error.code !== "csrf") throw error;
      await this.session();
      return this.#post(path, body);
    }
  }

  #post(path, body) {
    const headers = { "Content-Type": "application/json", "X-CSRF-Token": this.#csrf };
    return request(path, { method: "POST", headers, body: JSON.stringify(body) });
  }

  get csrf() {
    return this.#csrf;
  }
}

/**
 * Get a picture's bytes from `from` on: `begun(response)` before the first, `part(bytes)` as they come.
 */
export async function fetchPicture(url, from, begun, part) {
  const headers = from ? { Range: `bytes=${from}-` } : {};
  await exchange(url, { headers }, async (response, heard) => {
    if (!response.ok) throw failure(response, await response.text());
    begun(response);
    // Chromium calls a request failed whose body is read by a reader alone
    const reader = response.clone().body.getReader();
    const whole = response.blob();
    whole.catch(() => {}); // the reader fails too
    for (let some; !(some = await reader.read()).done; ) {
      heard();
      part(some.value);
    }
    await whole;
  });
}

async function request(path, options = {}) {
  return exchange(path.replace("/api", BASE), options, async (response) => {
    const text = await response.text();
    if (!response.ok) throw failure(response, text);
    return JSON.parse(text);
  });
}

/** Fetch and give the response to `use`, with what to call after each byte that comes. */
async function exchange(url, options, use) {
  const silence = new Silence();
  try {
    const response = await fetch(ROOT + url.slice(1), { signal: silence.signal, cache: "no-store", ...options });
    silence.heard();
    return await use(response, () => silence.heard());
  } catch (error) {
    if (error instanceof ApiError) throw error;
    throw new ApiError(0, { code: "offline", message: "The server cannot be reached." });
  } finally {
    silence.end();
  }
}

/** Aborts what listens to `signal` when nothing was heard for `SILENCE_MS`. */
class Silence {
  #controller = new AbortController();
  #timer = 0;

  constructor() {
    this.heard();
  }

  get signal() {
    return this.#controller.signal;
  }

  heard() {
    clearTimeout(this.#timer);
    const why = new ApiError(0, { code: SILENT, message: "The connection is slow: nothing arrived." });
    this.#timer = setTimeout(() => this.#controller.abort(why), SILENCE_MS);
  }

  end() {
    clearTimeout(this.#timer);
  }
}

function failure(response, text) {
  let body = {};
  try {
    body = JSON.parse(text);
  } catch {
    // a response of a proxy: it has no sentence for raters
  }
  const error = new ApiError(response.status, { ...body, ...body.error });
  const header = Number(response.headers.get("Retry-After"));
  if (header > 0) error.retryAfterMs = header * 1000;
  return error;
}
