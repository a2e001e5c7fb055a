// Loaded before the page is drawn, so that a chosen appearance does not flash.
try {
  document.documentElement.dataset.theme = localStorage.getItem("sayso.theme") ?? "auto";
} catch {
  document.documentElement.dataset.theme = "auto";
}
