// The prompt: never cut without a sign.

const LONG = 140; // characters; longer prompts are set smaller

const $ = (id) => document.getElementById(id);

/** Show a prompt; what does not fit fades out and comes with a button that shows the rest. */
export function drawPrompt(text) {
  $("prompt").textContent = text;
  $("prompt").dataset.length = text.length > LONG ? "long" : "short";
  open(false);
  $("prompt-more").onclick = () => open($("prompt").dataset.open !== "true");
}

function open(whole) {
  $("prompt").dataset.open = whole;
  $("prompt").scrollTop = 0;
  $("prompt-more").setAttribute("aria-expanded", whole);
  $("prompt-more").textContent = whole ? "Show less" : "Show full prompt";
  fade();
}

function fade() {
  const { scrollHeight, clientHeight, dataset } = $("prompt");
  const cut = scrollHeight > clientHeight + 1;
  $("prompt").classList.toggle("cut", cut);
  $("prompt-more").hidden = !cut && dataset.open !== "true";
}
window.addEventListener("resize", fade);
