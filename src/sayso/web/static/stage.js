// The pictures of a page: frames that have their size at once, and what stands in them.

import { icon, make } from "./dom.js";
import { arrange, screenPx } from "./layout.js";

const CRISP_PX = 128; // smaller pictures are shown in whole pixels, larger ones smoothly
const GUESS = { width: 32, height: 240 }; // what head, prompt, buttons and foot take, before they stand

const $ = (id) => document.getElementById(id);
const stage = () => $("stage");
const frames = () => [...document.querySelectorAll("#stage .frame")];

let current = null; // the page that is drawn
let unseen = new Set(); // frames of a comparison that were not on screen yet
let onSeen = () => {};

/** Draw empty frames of the final size. `onSelect(i)`: another picture of a group is meant. */
export function drawStage(page, onSelect) {
  current = page;
  const compares = page.kind === "compare";
  stage().dataset.kind = page.kind;
  stage().dataset.count = compares ? page.left.length : page.items.length;
  stage().replaceChildren(...(compares ? sides(page) : group(page, onSelect)));
  stage().scrollTop = 0;
  watchSeen(compares ? frames() : []);
  layOut();
}

// arrangement

/** For how many pixels of the screen the pictures of a page are; 0 asks for the originals. */
export function wantedPx(page) {
  const images = setsOf(page).flat();
  if (Math.max(...images.flatMap(({ width, height }) => [width, height])) <= CRISP_PX) return 0;
  return Math.max(...setsOf(page).map((set) => screenPx(arranged(set), ratioOf(set))));
}

function setsOf(page) {
  return page.kind === "compare" ? [page.left, page.right] : [page.items.map(({ image }) => image)];
}

/** The narrowest picture decides: its frame is as high as those of the others, at most. */
function ratioOf(set) {
  return Math.min(...set.map(({ width, height }) => width / height));
}

function arranged(set) {
  const gap = set.length > 1 ? 12 : 0;
  return arrange(set.length, ratioOf(set), boxOf(), gap);
}

/** The room for one set of pictures. */
function boxOf() {
  const element = document.querySelector("#stage .set") ?? stage();
  const style = getComputedStyle(stage());
  const paddings = Number.parseFloat(style.paddingTop) + Number.parseFloat(style.paddingBottom);
  if (!stage().clientHeight) {
    return { width: innerWidth - GUESS.width, height: innerHeight - GUESS.height };
  }
  const side = element.closest(".side");
  const chrome = side ? side.offsetHeight - element.offsetHeight : paddings;
  const width = side ? element.clientWidth : element.clientWidth - paddings;
  return { width, height: stage().clientHeight - chrome };
}

/** Give the frames the size that is best now. */
export function layOut() {
  if (!current || stage().classList.contains("zoomed")) return;
  stage().classList.remove("scrolls");
  const places = document.querySelectorAll("#stage .set");
  const plans = setsOf(current).map(arranged);
  (places.length ? places : [stage()]).forEach((place, i) => {
    const ratio = ratioOf(setsOf(current)[i]);
    place.style.setProperty("--cols", plans[i].cols);
    place.style.setProperty("--room-w", `${plans[i].width}px`);
    place.style.setProperty("--room-h", `${plans[i].width / ratio}px`);
  });
  stage().classList.toggle("scrolls", plans.some(({ scrolls }) => scrolls));
  showScrolling();
}

/** What can scroll is reachable by keyboard, and shows that there is more. */
function showScrolling() {
  const { scrollHeight, clientHeight, scrollTop } = stage();
  const scrolls = scrollHeight > clientHeight + 1;
  if (scrolls) stage().tabIndex = 0;
  else stage().removeAttribute("tabindex");
  stage().classList.toggle("more", scrolls && scrollTop + clientHeight < scrollHeight - 8);
}

/** Keep the arrangement right; `resized()` is called when the room has changed. */
export function followRoom(resized) {
  new ResizeObserver(() => {
    layOut();
    resized();
  }).observe(stage());
  stage().addEventListener("scroll", showScrolling, { passive: true });
}

// what was seen

/** Whether every picture of the comparison was on screen; of other pages that is not asked. */
export function allSeen() {
  return unseen.size === 0;
}

/** Scroll to what was not seen yet. */
export function scrollOn() {
  const [first] = unseen;
  first?.scrollIntoView({ block: "start" });
}

/** Call `seen()` when the last picture of a comparison has come on screen. */
export function whenSeen(seen) {
  onSeen = seen;
}

let watcher;

function watchSeen(elements) {
  watcher?.disconnect();
  unseen = new Set(elements);
  watcher = new IntersectionObserver(
    (entries) => {
      const before = unseen.size;
      for (const { isIntersecting, target } of entries) if (isIntersecting) unseen.delete(target);
      if (before && unseen.size === 0) onSeen();
    },
    { threshold: 0.6 },
  );
  for (const element of elements) watcher.observe(element);
}

// pictures

/** Put the decoded pictures into their frames. */
export function fillFrames(page, images) {
  const alts = altTexts(page);
  frames().forEach((frame, i) => {
    const picture = images.elements.get(images.slots[i].url);
    if (!picture) return;
    picture.alt = alts[i];
    frame.querySelector(".hole").replaceChildren(picture);
    frame.classList.add("filled");
  });
}

/** Show how much of each picture has come. */
export function drawArriving(images) {
  frames().forEach((frame, i) => {
    const part = images.progress(images.slots[i]?.url);
    const sign = frame.querySelector(".arriving");
    if (!sign || part === undefined) return;
    sign.hidden = false;
    sign.querySelector("progress").value = part;
    sign.querySelector("span").textContent = `${Math.floor(part * 100)} %`;
  });
}

function altTexts(page) {
  if (page.kind === "compare") {
    const of = (side, list) => list.map((_, i) => `${side}, image ${i + 1} of ${list.length}`);
    return [...of("Left", page.left), ...of("Right", page.right)];
  }
  const n = page.items.length;
  return page.items.map((_, i) => (n === 1 ? "The image to rate" : `Image ${i + 1} of ${n}`));
}

function sides(page) {
  return ["left", "right"].map((side) =>
    make(
      "section",
      { class: "side", "data-side": side, "aria-label": side === "left" ? "Left" : "Right" },
      make("h2", { class: "side-name" }, icon(side), side === "left" ? "Left" : "Right"),
      make("div", { class: "set" }, ...page[side].map(frame)),
    ),
  );
}

function group(page, onSelect) {
  if (page.items.length === 1) return [frame(page.items[0].image)];
  return page.items.map((item, i) => {
    const name = `Select image ${i + 1} of ${page.items.length}`;
    const select = { type: "button", class: "select", "aria-label": name };
    const outer = frame(item.image);
    outer.append(make("button", { ...select, onclick: () => onSelect(i) }));
    outer.append(make("span", { class: "verdict" }));
    return outer;
  });
}

function frame({ width, height }) {
  const bar = make("progress", { max: 1, value: 0 });
  const arriving = make("div", { class: "arriving", "aria-hidden": "true", hidden: "" }, bar, make("span"));
  const element = make("div", { class: "frame" }, make("div", { class: "hole" }, arriving));
  element.style.setProperty("--w", `${width}px`);
  element.style.setProperty("--ratio", width / height);
  element.classList.toggle("crisp", Math.max(width, height) <= CRISP_PX);
  return element;
}

/** Say in a group which picture is asked about, and what was voted; `words`: value → {label, icon}. */
export function drawGroup(page, cursor, words) {
  if (page.kind === "compare" || page.items.length === 1) return;
  frames().forEach((element, i) => {
    const value = page.votes?.[page.items[i].item_id]?.value;
    element.classList.toggle("current", i === cursor);
    if (i === cursor) element.scrollIntoView({ block: "nearest" });
    element.querySelector(".select").setAttribute("aria-current", i === cursor);
    const verdict = element.querySelector(".verdict");
    verdict.dataset.value = value ?? "";
    verdict.replaceChildren(...(value ? [icon(words[value].icon), words[value].label] : []));
  });
}

/** Say in the document what is on screen, drawn and asked about. */
export function noteShown(pageId, cursor) {
  stage().dataset.shown = `${pageId}/${cursor}`;
}
