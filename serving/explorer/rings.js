// Marks on a canvas above the points: the object, its neighbours, what is marked, selected or hovered.

export const NO_MARKS = { own: -1, near: [], more: [], less: [], selected: [] };
const MOST_SELECTED = 20_000; // of which the marks are drawn

/** A context over the whole element, in CSS pixels, wiped; null while it has no size. */
export function clear(canvas) {
  const ratio = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width || !height) return null;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

/** `marks` as NO_MARKS, by number; `place(number)`: where an object is in pixels, or null. */
export function rings(context, marks, hovered, place) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name);
  const draw = (path, width, stroke) => {
    for (const [wide, drawn] of [[width + 2, colour("--page")], [width, stroke]]) {
      context.lineWidth = wide;
      context.strokeStyle = drawn;
      context.stroke(path);
    }
  };
  const ring = (number, radius, width, stroke) => {
    const at = number >= 0 ? place(number) : null;
    if (!at) return;
    const path = new Path2D();
    path.arc(at[0], at[1], radius, 0, 2 * Math.PI);
    draw(path, width, stroke);
  };
  // Shapes differ, not colours alone.
  const crossed = (number, isUpright, stroke) => {
    const at = number >= 0 ? place(number) : null;
    if (!at) return;
    const path = new Path2D();
    for (const [dx, dy] of isUpright ? [[7, 0], [0, 7]] : [[7, 0]]) {
      path.moveTo(at[0] - dx, at[1] - dy);
      path.lineTo(at[0] + dx, at[1] + dy);
    }
    draw(path, 2.5, stroke);
  };
  // Faint where they are many, so that the points below are seen.
  context.globalAlpha = Math.max(0.25, Math.min(1, 60 / marks.selected.length));
  context.lineWidth = 1;
  context.strokeStyle = colour("--text");
  context.stroke(squares(marks.selected.slice(0, MOST_SELECTED), place));
  context.globalAlpha = 1;
  for (const number of marks.near) ring(number, 5, 1.5, colour("--accent"));
  for (const number of marks.more) crossed(number, true, colour("--more"));
  for (const number of marks.less) crossed(number, false, colour("--less"));
  if (hovered >= 0) ring(hovered, 7, 1.5, colour("--text"));
  ring(marks.own, 9, 2.5, colour("--mark"));
}

function squares(numbers, place) {
  const path = new Path2D();
  for (const number of numbers) {
    const at = place(number);
    if (at) path.rect(at[0] - 3.5, at[1] - 3.5, 7, 7);
  }
  return path;
}
