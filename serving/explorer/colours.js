// From numbers to colours: one scale for maps and bar, readable on light and on dark, and to those who see few colours.

const VIRIDIS = ["#440154", "#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6dcd59", "#b4de2c", "#fde725"];
const CLASSES = ["#4e9bd8", "#e0a33e", "#5bb98c", "#d1687b", "#9a7fd1", "#86a33c", "#c77fb5", "#8f9aa6"];
export const STEPS = 256;

export const isDark = () => document.documentElement.dataset.theme === "dark";

/** STEPS colours "#rrggbb" from low to high, those left out that the background would swallow. */
export function scale() {
  const [low, high] = isDark() ? [0.2, 1] : [0, 0.88];
  return Array.from({ length: STEPS }, (_, i) => sample(low + ((high - low) * i) / (STEPS - 1)));
}

export const unknown = () => (isDark() ? "#3b434e" : "#c6ccd3");
export const single = () => (isDark() ? "#7fb0de" : "#3a6ea5");

/**
 * How the objects are coloured: `index` has for each its place in `colours`, of which the first is for what is unknown.
 * `values` are numbers; with `classes` (names by number), each is a class.
 */
export function colouring(values, count, classes = null) {
  if (!values) return { index: new Float32Array(count).fill(1), colours: [unknown(), single()], kind: "none" };
  if (classes) {
    const names = [...new Set(values)].sort((a, b) => a - b).slice(0, CLASSES.length);
    const place = new Map(names.map((value, i) => [value, i + 1]));
    const index = Float32Array.from(values, (value) => place.get(value) ?? 0);
    const colours = [unknown(), ...names.map((_, i) => CLASSES[i])];
    return { index, colours, kind: "classes", names: names.map(classes) };
  }
  const [low, high] = range(values);
  const step = (STEPS - 1) / (high - low || 1);
  const index = Float32Array.from(values, (v) =>
    Number.isNaN(v) ? 0 : 1 + Math.min(STEPS - 1, Math.max(0, Math.round((v - low) * step))),
  );
  return { index, colours: [unknown(), ...scale()], kind: "scale", low, high };
}

/** The range that holds all but the outermost percent on each side, from a sample of the values. */
function range(values) {
  const stride = Math.max(1, Math.floor(values.length / 50_000));
  const known = [];
  for (let i = 0; i < values.length; i += stride) if (!Number.isNaN(values[i])) known.push(values[i]);
  if (!known.length) return [0, 1];
  known.sort((a, b) => a - b);
  return [known[Math.floor(0.01 * (known.length - 1))], known[Math.ceil(0.99 * (known.length - 1))]];
}

function sample(place) {
  const at = Math.min(place, 1) * (VIRIDIS.length - 1);
  const i = Math.min(Math.floor(at), VIRIDIS.length - 2);
  const [a, b] = [rgb(VIRIDIS[i]), rgb(VIRIDIS[i + 1])];
  return `#${a.map((v, c) => Math.round(v + (b[c] - v) * (at - i)).toString(16).padStart(2, "0")).join("")}`;
}

export function rgb(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}
