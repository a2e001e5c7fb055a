// The page that stands in for the start page while the server cannot be reached.

import { openStore } from "./store.js";

const EVERY_MS = 5000;

async function count() {
  const store = await openStore();
  const n = (await store.all("outbox")).length;
  const waiting = document.getElementById("waiting");
  if (n) waiting.textContent = n === 1 ? "1 vote is waiting on this device." : `${n} votes are waiting on this device.`;
}

async function look() {
  const reply = await fetch("healthz", { cache: "no-store" }).catch(() => null);
  if (reply?.ok) location.replace("./");
}

count();
setInterval(look, EVERY_MS);
window.addEventListener("online", look);
document.getElementById("try").addEventListener("click", look);
