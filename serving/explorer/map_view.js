// The map of the embedding space: WebGL by regl-scatterplot, a plain canvas where that is not to be had.

import { createScatterplot } from "./vendor/vendor.js";
import { PlaneCanvas } from "./plane_canvas.js";
import { clear, NO_MARKS, rings } from "./rings.js";

const EDGE = 0.92; // of the view that the points fill

export class MapView {
  /** `events`: over(number, x, y), out(), click(number). */
  constructor(canvas, overlay, events) {
    this.canvas = canvas;
    this.overlay = overlay;
    this.events = events;
    this.marks = NO_MARKS;
    this.hovered = -1;
    this.x = this.y = null;
    this.colours = null;
    this.drawing = Promise.resolve();
    this.plot = this.plane = null;
    try {
      this.plot = this.makePlot();
    } catch {
      // No WebGL, or a machine for which regl would need code that the page's policy forbids.
      this.fallBack();
    }
  }

  makePlot() {
    const probe = document.createElement("canvas").getContext("webgl");
    if (!probe?.getExtension("OES_texture_float")) throw new Error("no WebGL, or one without textures of floats");
    probe.getExtension("WEBGL_lose_context")?.loseContext();
    const { width, height } = this.canvas.getBoundingClientRect();
    const plot = createScatterplot({
      canvas: this.canvas,
      width: width || 600,
      height: height || 400,
      colorBy: "valueA",
      opacityBy: "density",
      opacityInactiveScale: 1,
      pointSize: 3,
      pointSizeSelected: 0,
      pointOutlineWidth: 0,
      lassoOnLongPress: false,
      actionKeyMap: {},
      deselectOnDblClick: false,
      deselectOnEscape: false,
      showReticle: false,
      spatialIndexUseWorker: false,
      backgroundColor: this.background(),
    });
    plot.subscribe("pointOver", (number) => {
      this.hover(number);
      const at = this.screenPosition(number);
      if (at) this.events.over(number, ...at);
    });
    plot.subscribe("pointOut", () => {
      this.hover(-1);
      this.events.out();
    });
    plot.subscribe("select", ({ points }) => {
      if (points.length) this.events.click(points[0]);
      plot.deselect({ preventEvent: true });
    });
    plot.subscribe("view", () => this.drawOverlay());
    new ResizeObserver(() => {
      const box = this.canvas.parentElement.getBoundingClientRect();
      if (!box.width || !box.height) return;
      plot.set({ width: box.width, height: box.height });
      requestAnimationFrame(() => this.drawOverlay());
    }).observe(this.canvas.parentElement);
    return plot;
  }

  fallBack() {
    this.plot = null;
    const fresh = this.canvas.cloneNode();
    this.canvas.replaceWith(fresh); // a canvas that was asked for WebGL draws nothing else
    this.canvas = fresh;
    this.plane = new PlaneCanvas(fresh, {
      over: (number, x, y) => (this.hover(number), this.events.over(number, x, y)),
      out: () => (this.hover(-1), this.events.out()),
      click: this.events.click,
      moved: () => this.drawOverlay(),
    });
  }

  background() {
    return getComputedStyle(document.documentElement).getPropertyValue("--page").trim();
  }

  /** Places on the plane; `isMoving` lets the points travel from where they were. */
  setPoints(x, y, isMoving = false) {
    [this.x, this.y] = fitted(x, y);
    return this.draw(isMoving);
  }

  setColours(colours) {
    this.colours = colours;
    return this.draw(false);
  }

  draw(isMoving) {
    if (!this.x || !this.colours) return this.drawing;
    const { index, colours } = this.colours;
    if (this.plane) {
      this.plane.setColours(index, colours);
      if (this.plane.x !== this.x) this.plane.setPoints(this.x, this.y);
      return this.drawing;
    }
    const points = { x: this.x, y: this.y, z: index };
    const size = this.x.length > 200_000 ? 1.5 : this.x.length > 20_000 ? 2.5 : this.x.length > 2_000 ? 4 : 6;
    // One after another: the plot refuses to be drawn while it draws.
    this.drawing = this.drawing
      .then(async () => {
        this.plot.set({ pointColor: colours, pointSize: size, backgroundColor: this.background() });
        await this.plot.draw(points, { zDataType: "categorical", transition: isMoving, transitionDuration: 900 });
        this.drawOverlay();
      })
      .catch((error) => {
        if (!this.plot) return;
        console.warn(`The map is drawn without WebGL: ${error.message}`);
        this.fallBack();
        this.draw(false);
      });
    return this.drawing;
  }

  /** What is marked, by number: see NO_MARKS. */
  setMarks(marks) {
    if (marks.own >= 0 && marks.own !== this.marks.own) this.reveal(marks.own);
    this.marks = marks;
    this.drawOverlay();
  }

  /** Move so that a point is in sight; zooming is the user's. */
  reveal(number) {
    if (this.plane) return this.plane.reveal(number);
    const at = this.screenPosition(number);
    const { width, height } = this.canvas.getBoundingClientRect();
    if (!at || (at[0] > 0 && at[1] > 0 && at[0] < width && at[1] < height)) return;
    this.plot.zoomToLocation([this.x[number], this.y[number]], this.plot.get("cameraDistance"));
  }

  hover(number) {
    if (number === this.hovered) return;
    this.hovered = number;
    this.drawOverlay();
  }

  showAll() {
    if (this.plane) this.plane.showAll();
    else this.plot.reset();
  }

  /** Where an object is, in pixels of the view; null if it is not drawn. */
  screenPosition(number) {
    if (this.plane) return this.plane.place(number);
    return this.x ? (this.plot.getScreenPosition(number) ?? null) : null;
  }

  drawOverlay() {
    const context = clear(this.overlay);
    if (context) rings(context, this.marks, this.hovered, (number) => this.screenPosition(number));
  }
}

/** Places within [-1, 1], with all but the outermost of them filling the view. */
function fitted(x, y) {
  const [left, right] = reach(x);
  const [low, high] = reach(y);
  const half = Math.max(right - left, high - low) / 2 / EDGE || 1;
  const [cx, cy] = [(left + right) / 2, (low + high) / 2];
  return [x.map((v) => (v - cx) / half), y.map((v) => (v - cy) / half)];
}

function reach(values) {
  const stride = Math.max(1, Math.floor(values.length / 100_000));
  const some = values.filter((_, i) => i % stride === 0).sort();
  const at = (share) => some[Math.round(share * (some.length - 1))] ?? 0;
  const margin = 0.15 * (at(0.998) - at(0.002));
  return [Math.max(some[0] ?? 0, at(0.002) - margin), Math.min(some.at(-1) ?? 0, at(0.998) + margin)];
}
