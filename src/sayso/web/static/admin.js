// Administration: parts with data-live follow the server; the pages also work without this.

const EVERY_MS = 10_000;

async function refresh() {
  if (document.hidden || document.activeElement?.closest("[data-live]")) return;
  const response = await fetch(location.href, { cache: "no-store" }).catch(() => null);
  if (!response?.ok || response.redirected) return;
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const open = part.querySelector("details[open]");
    const next = fresh.querySelector(`[data-live="${part.dataset.live}"]`);
    if (next && !open && next.innerHTML !== part.innerHTML) part.innerHTML = next.innerHTML;
  }
}

if (document.querySelector("[data-live]")) setInterval(refresh, EVERY_MS);

// on a narrow window the tabs scroll sideways
document.querySelector(".tabs [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const field = document.getElementById(button.dataset.copy);
    field.select();
    // plain http has no clipboard: the text is selected then, ready for the keyboard
    await navigator.clipboard?.writeText(field.value).then(
      () => (button.textContent = button.dataset.done),
      () => {},
    );
  });
}

for (const button of document.querySelectorAll("[data-confirm]")) {
  button.addEventListener("click", (event) => {
    if (!confirm(button.dataset.confirm)) event.preventDefault();
  });
}

// text that was typed and not saved is not thrown away unasked; after a refusal it is still unsaved
for (const form of document.querySelectorAll("form[data-unsaved]")) {
  let unsaved = form.dataset.unsaved === "yes";
  form.addEventListener("input", () => (unsaved = true));
  form.addEventListener("submit", () => (unsaved = false));
  window.addEventListener("beforeunload", (event) => unsaved && event.preventDefault());
}

// a picture in the whole window; a click on it shows the original pixels, arrow keys the next one
const zoom = document.createElement("dialog");
zoom.className = "zoom";
zoom.setAttribute("aria-label", "The image in full");
zoom.innerHTML = '<button type="button" class="button">Close</button><img alt="">';
document.body.append(zoom);
const [close, large] = zoom.children;
let links = [], at = 0;

function show(i) {
  at = (i + links.length) % links.length;
  large.src = links[at].href;
  large.alt = links[at].querySelector("img").alt;
  large.removeAttribute("data-original");
}

document.addEventListener("click", (event) => {
  const link = event.target.closest(".pictures a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  links = [...link.closest(".pictures").querySelectorAll("a")];
  show(links.indexOf(link));
  zoom.showModal();
});
close.addEventListener("click", () => zoom.close());
large.addEventListener("click", () => large.toggleAttribute("data-original"));
zoom.addEventListener("close", () => links[at]?.focus());
zoom.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step && !large.hasAttribute("data-original")) show(at + step);
});
