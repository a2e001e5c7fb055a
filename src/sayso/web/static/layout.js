// How pictures stand in the room there is. Pure arithmetic; lengths in CSS pixels.

const SMALLEST_PX = 200; // a picture's longest side; rather than less, the stage scrolls

/**
 * The arrangement in which `n` pictures are largest: {cols, width (of a picture), scrolls}.
 * @param ratio width by height of a picture
 * @param box {width, height} for all of them
 */
export function arrange(n, ratio, box, gap = 8) {
  const options = Array.from({ length: n }, (_, i) => fit(i + 1, n, ratio, box, gap));
  const best = options.reduce((one, other) => (other.width > one.width ? other : one));
  const least = SMALLEST_PX * Math.min(1, ratio);
  if (best.width >= least) return { ...best, scrolls: false };
  const broad = options.filter(({ room }) => room >= least).at(-1) ?? options[0];
  const width = Math.min(broad.room, Math.max(least, box.height * ratio));
  const rows = Math.ceil(n / broad.cols);
  return { ...broad, width, scrolls: rows * (width / ratio + gap) - gap > box.height + 1 };
}

function fit(cols, n, ratio, box, gap) {
  const rows = Math.ceil(n / cols);
  const room = (box.width - (cols - 1) * gap) / cols;
  const height = (box.height - (rows - 1) * gap) / rows;
  return { cols, room, width: Math.max(0, Math.min(room, height * ratio)) };
}

/** Pixels of the screen along the longest side of a picture. */
export function screenPx({ width }, ratio) {
  return Math.ceil(width * Math.max(1, 1 / ratio) * devicePixelRatio);
}
