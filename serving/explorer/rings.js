// Rings on a canvas above the points: the object, its neighbours, and what is hovered.

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

/** `marks`: numbers, the object first; `place(number)`: where it is in pixels, or null. */
export function rings(context, marks, hovered, place) {
  const style = getComputedStyle(document.documentElement);
  const ring = (number, radius, width, colour) => {
    const at = number >= 0 ? place(number) : null;
    if (!at) return;
    for (const [wide, stroke] of [[width + 2, style.getPropertyValue("--page")], [width, colour]]) {
      context.beginPath();
      context.arc(at[0], at[1], radius, 0, 2 * Math.PI);
      context.lineWidth = wide;
      context.strokeStyle = stroke;
      context.stroke();
    }
  };
  for (const number of marks.slice(1)) ring(number, 5, 1.5, style.getPropertyValue("--accent"));
  if (hovered >= 0) ring(hovered, 7, 1.5, style.getPropertyValue("--text"));
  if (marks.length) ring(marks[0], 9, 2.5, style.getPropertyValue("--mark"));
}
