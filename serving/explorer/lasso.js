// A line drawn by hand around points of a view, and which points lie within it.

/** Let the user draw on `surface`, an <svg> above a view; `done(polygon, isMore)`: corners in pixels, and if shift is held. */
export function lasso(surface, done) {
  const shape = surface.querySelector("polygon");
  let corners = [];
  const end = () => {
    const drawn = corners;
    corners = [];
    shape.setAttribute("points", "");
    return drawn;
  };
  const add = (event) => {
    const box = surface.getBoundingClientRect();
    corners.push([event.clientX - box.left, event.clientY - box.top]);
    shape.setAttribute("points", corners.join(" "));
  };
  surface.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary) return;
    surface.setPointerCapture(event.pointerId);
    end();
    add(event);
  });
  surface.addEventListener("pointermove", (event) => corners.length && event.isPrimary && add(event));
  surface.addEventListener("pointerup", (event) => {
    if (!event.isPrimary || !corners.length) return;
    const drawn = end();
    if (drawn.length > 2) done(drawn, event.shiftKey);
  });
  surface.addEventListener("pointercancel", end);
}

/** Numbers, of the first `count`, whose `place(number)` ([x, y] or null) lies within a polygon. */
export function within(polygon, count, place) {
  const [xs, ys] = [polygon.map((corner) => corner[0]), polygon.map((corner) => corner[1])];
  const reduce = (values, least) => values.reduce((a, b) => least(a, b));
  const [left, right, top, bottom] = [reduce(xs, Math.min), reduce(xs, Math.max), reduce(ys, Math.min), reduce(ys, Math.max)];
  const found = [];
  for (let number = 0; number < count; number++) {
    const at = place(number);
    if (!at || at[0] < left || at[0] > right || at[1] < top || at[1] > bottom) continue;
    if (isWithin(polygon, at[0], at[1])) found.push(number);
  }
  return found;
}

/** Whether a line from the place to the right crosses the edge an odd number of times. */
function isWithin(polygon, x, y) {
  let inside = false;
  for (let i = 0, before = polygon.length - 1; i < polygon.length; before = i++) {
    const [[ax, ay], [bx, by]] = [polygon[i], polygon[before]];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
  }
  return inside;
}
