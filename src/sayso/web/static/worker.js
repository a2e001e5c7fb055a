// A reload without a connection: says what waits on this device, and goes on when the net is back.
//
// The server puts a hash of these files before this line, so that a changed file is a new worker.
// Nothing else is ever kept: no page with a name on it, no picture, no response of the server.

const OURS = "sayso-"; // other caches of this address are somebody else's
const ROOT = new URL(".", self.location).pathname;
const PLACE = `${OURS}${VERSION}`;

self.addEventListener("install", (event) => {
  const keep = async () => (await caches.open(PLACE)).addAll(FILES);
  event.waitUntil(keep().then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  const forget = async () => {
    const ours = (await caches.keys()).filter((name) => name.startsWith(OURS));
    const old = ours.filter((name) => name !== PLACE);
    await Promise.all(old.map((name) => caches.delete(name)));
  };
  event.waitUntil(forget());
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const { pathname } = new URL(request.url);
  const start = request.mode === "navigate" && pathname === ROOT;
  const files = FILES.map((file) => ROOT + file);
  if (request.method !== "GET" || !(start || files.includes(pathname))) return;
  const kept = () => caches.match(start ? files[0] : pathname, { cacheName: PLACE });
  event.respondWith(fetch(request).catch(async () => (await kept()) ?? Response.error()));
});
