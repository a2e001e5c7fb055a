// Zoom with one key over the whole stage; of a comparison one picture of each side, the same spot in both.

const FACTOR = 3;
const STEP = 0.12;
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const TURNS = { PageUp: -1, PageDown: 1 };

const $ = (id) => document.getElementById(id);

/** Enlarges pictures of the stage about one shared point, which pointer and arrow keys move. */
export class Zoom {
  on = false;
  onChange = () => {}; // it was switched on or off
  #stage;
  #button;
  #x = 0.5;
  #y = 0.5;
  #place = 0; // which picture of each side, or of the group

  constructor(stage, button) {
    this.#stage = stage;
    this.#button = button;
    stage.addEventListener("pointermove", (event) => this.on && this.#follow(event));
    stage.addEventListener("click", (event) => this.#clicked(event));
    $("zoom-back").onclick = () => this.#turn(-1);
    $("zoom-on").onclick = () => this.#turn(1);
  }

  toggle() {
    this.set(!this.on);
  }

  set(on, place) {
    const changed = this.on !== on;
    this.on = on;
    if (on) {
      [this.#x, this.#y] = [0.5, 0.5];
      const asked = this.#frames(0).findIndex((frame) => frame.classList.contains("current"));
      this.#place = place ?? Math.max(asked, 0);
    }
    this.#stage.classList.toggle("zoomed", on);
    this.#button.setAttribute("aria-pressed", String(on));
    this.#draw();
    if (changed) this.onChange();
  }

  /** Move with an arrow key, or go to the next pictures; false if the key means neither. */
  move(key) {
    if (!this.on) return false;
    if (key in TURNS) this.#turn(TURNS[key]);
    const move = MOVES[key];
    if (move) {
      this.#x = clamp(this.#x + move[0] * STEP);
      this.#y = clamp(this.#y + move[1] * STEP);
      this.#draw();
    }
    return key in TURNS || key in MOVES;
  }

  /** The frames of a side, or all. */
  #frames(side) {
    const sets = [...this.#stage.querySelectorAll(".set")];
    return [...(sets[side] ?? this.#stage).querySelectorAll(".frame")];
  }

  #turn(by) {
    const n = this.#frames(0).length;
    this.#place = (this.#place + by + n) % n;
    this.#draw();
  }

  #clicked(event) {
    const frame = event.target.closest?.(".frame.filled");
    if (!frame || !event.target.closest(".hole")) return;
    if (this.on) return this.set(false);
    const place = [0, 1].map((side) => this.#frames(side).indexOf(frame)).find((i) => i >= 0);
    this.set(true, place);
    this.#follow(event);
  }

  #follow(event) {
    const hole = event.target.closest?.(".hole");
    if (!hole) return;
    const box = hole.getBoundingClientRect();
    this.#x = clamp((event.clientX - box.left) / box.width);
    this.#y = clamp((event.clientY - box.top) / box.height);
    this.#draw();
  }

  #draw() {
    const { style } = this.#stage;
    style.setProperty("--zoom", this.on ? FACTOR : 1);
    style.setProperty("--zoom-x", `${this.#x * 100}%`);
    style.setProperty("--zoom-y", `${this.#y * 100}%`);
    for (const side of [0, 1]) {
      this.#frames(side).forEach((frame, i) => frame.classList.toggle("in-zoom", i === this.#place));
    }
    const n = this.#frames(0).length;
    $("zoom-bar").hidden = !this.on || n < 2;
    $("zoom-place").textContent = `${this.#place + 1} of ${n}`;
  }
}

function clamp(value) {
  return Math.min(1, Math.max(0, value));
}
