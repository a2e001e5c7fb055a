// Zoom with one key, the same spot in every picture of the page.

const FACTOR = 3;
const STEP = 0.12;
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Enlarges all pictures of the stage about one shared point, which pointer and arrow keys move. */
export class Zoom {
  #stage;
  #button;
  #x = 0.5;
  #y = 0.5;
  on = false;

  constructor(stage, button) {
    this.#stage = stage;
    this.#button = button;
    stage.addEventListener("pointermove", (event) => this.on && this.#follow(event));
    stage.addEventListener("click", (event) => this.#clicked(event));
  }

  toggle() {
    this.set(!this.on);
  }

  set(on) {
    this.on = on;
    if (on) [this.#x, this.#y] = [0.5, 0.5];
    this.#stage.classList.toggle("zoomed", on);
    this.#button.setAttribute("aria-pressed", String(on));
    this.#draw();
  }

  /** Move with an arrow key; false if it is none. */
  move(key) {
    const move = MOVES[key];
    if (!this.on || !move) return false;
    this.#x = clamp(this.#x + move[0] * STEP);
    this.#y = clamp(this.#y + move[1] * STEP);
    this.#draw();
    return true;
  }

  #clicked(event) {
    const hole = event.target.closest?.(".hole");
    if (!hole) return;
    this.toggle();
    if (this.on) this.#follow(event);
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
    const style = this.#stage.style;
    style.setProperty("--zoom", this.on ? FACTOR : 1);
    style.setProperty("--zoom-x", `${this.#x * 100}%`);
    style.setProperty("--zoom-y", `${this.#y * 100}%`);
  }
}

function clamp(value) {
  return Math.min(1, Math.max(0, value));
}
