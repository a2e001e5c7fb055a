// Administration: parts marked data-live follow the server; the pages also work without this.

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
