// One tab rates, the others stand aside. Plain messages: they also work without https.

const REPLY_MS = 150;

/** @param owner study and rater */
export class Tabs {
  #channel;
  #id = Math.random();
  #state = "starting"; // starting | active | aside
  onLost = () => {}; // called when another tab takes over

  constructor(owner) {
    this.#channel = new BroadcastChannel(`sayso ${owner}`);
    this.#channel.onmessage = (event) => this.#heard(event.data);
    // a tab that was frozen asks whether another one rates by now
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.#state === "active") this.#say("hello");
    });
  }

  /** True if this tab may rate: no other one says that it does. */
  async claim() {
    this.#say("hello");
    await new Promise((resolve) => setTimeout(resolve, REPLY_MS));
    if (this.#state === "starting") this.#state = "active";
    return this.#state === "active";
  }

  /** Tell the other tab to stand aside. */
  take() {
    this.#say("take");
  }

  #heard({ what, from, to }) {
    const mine = this.#state === "active" || (this.#state === "starting" && this.#id < from);
    if (what === "hello" && mine) this.#say("here", from);
    if (what === "take" || (what === "here" && to === this.#id)) this.#standAside();
  }

  #standAside() {
    const was = this.#state;
    this.#state = "aside";
    if (was === "active") this.onLost();
  }

  #say(what, to) {
    this.#channel.postMessage({ what, from: this.#id, to });
  }
}
