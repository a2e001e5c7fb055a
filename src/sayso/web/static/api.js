// Requests to the server; every failure becomes an ApiError that says what to do next.

const TIMEOUT_MS = 20_000;
const OTHER_RATER = "other_rater";
const BASE = document.body.dataset.api ?? "/api"; // reviewers decide through another interface

/** A request that failed. `status` is 0 if no answer came; `retry` says that repeating can help. */
export class ApiError extends Error {
  constructor(status, about = {}) {
    const { code = "", message = "", retry = false, retry_after_s = 0, stored = false } = about;
    super(message || `The server answered with ${status}.`);
    this.status = status;
    this.code = code;
    this.stored = stored; // it was kept although the task is closed
    this.retry = retry || status === 0 || status === 429 || status >= 500;
    this.retryAfterMs = retry_after_s * 1000;
  }

  get offline() {
    return this.status === 0;
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
      const message = "Somebody else has signed in here.";
      throw new ApiError(401, { code: OTHER_RATER, message });
    }
    this.#csrf = session.csrf;
    return session;
  }

  /** End the session of whoever is signed in here now. */
  async signOut() {
    const { csrf } = await request("/api/session");
    await answer("/out", { method: "POST", body: new URLSearchParams({ csrf }) });
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

/** The bytes of a picture. */
export async function fetchPicture(url) {
  const response = await answer(url, { cache: "no-store" });
  if (!response.ok) throw await failure(response);
  return response.blob();
}

async function request(path, options = {}) {
  const response = await answer(path.replace("/api", BASE), { cache: "no-store", ...options });
  if (!response.ok) throw await failure(response);
  return response.json();
}

async function answer(url, options) {
  try {
    return await fetch(url, { signal: AbortSignal.timeout(TIMEOUT_MS), ...options });
  } catch {
    throw new ApiError(0, { code: "offline", message: "The server cannot be reached." });
  }
}

async function failure(response) {
  const body = await response.json().catch(() => ({}));
  const error = new ApiError(response.status, { ...body, ...body.error });
  const header = Number(response.headers.get("Retry-After"));
  if (header > 0) error.retryAfterMs = header * 1000;
  return error;
}
