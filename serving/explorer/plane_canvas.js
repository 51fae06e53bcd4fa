// Many points on a plane, on a plain canvas: moved, zoomed, hovered, clicked. The sky is drawn so; the map too where
// there is no WebGL.

import { rgb } from "./colours.js";

const NEAR = 9; // pixels within which a point is meant
const FARTHEST_ZOOM = 0.5;
const NEAREST_ZOOM = 20_000;

export class PlaneCanvas {
  /** `events`: over(number, x, y), out(), click(number), moved(), and drawn(context) after each drawing. */
  constructor(canvas, events) {
    this.canvas = canvas;
    this.events = events;
    this.x = this.y = new Float32Array(0);
    this.index = null;
    this.palette = new Uint32Array([0xff888888]);
    this.view = { x: 0, y: 0, scale: 1 };
    this.home = { ...this.view };
    this.isAsked = false;
    new ResizeObserver(() => this.resize()).observe(canvas.parentElement);
    this.listen();
  }

  /** Points in plane coordinates, y upward; NaN is not drawn. */
  setPoints(x, y) {
    this.x = x;
    this.y = y;
    this.showAll();
  }

  setColours(index, colours) {
    this.index = index;
    this.palette = Uint32Array.from(colours, (hex) => {
      const [r, g, b] = rgb(hex);
      return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
    });
    this.ask();
  }

  /** Fit all points. */
  showAll() {
    let [left, right, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
    for (let i = 0; i < this.x.length; i++) {
      if (Number.isNaN(this.x[i])) continue;
      left = Math.min(left, this.x[i]);
      right = Math.max(right, this.x[i]);
      low = Math.min(low, this.y[i]);
      high = Math.max(high, this.y[i]);
    }
    if (left > right) [left, right, low, high] = [-1, 1, -1, 1];
    const { width, height } = this.size();
    const scale = 0.88 * Math.min(width / (right - left || 1e-3), height / (high - low || 1e-3));
    this.home = { x: (left + right) / 2, y: (low + high) / 2, scale };
    this.view = { ...this.home };
    this.ask();
  }

  /** Move so that a point is in sight; zooming is the user's. */
  reveal(number) {
    const place = this.place(number);
    if (!place) return;
    const { width, height } = this.size();
    if (place[0] > 20 && place[1] > 20 && place[0] < width - 20 && place[1] < height - 20) return;
    Object.assign(this.view, { x: this.x[number], y: this.y[number] });
    this.ask();
  }

  /** Where a point is, in pixels of the canvas; null if it has no place. */
  place(number) {
    return Number.isNaN(this.x[number] ?? NaN) ? null : this.toPixels(this.x[number], this.y[number]);
  }

  toPixels(x, y) {
    const { width, height } = this.size();
    return [width / 2 + (x - this.view.x) * this.view.scale, height / 2 - (y - this.view.y) * this.view.scale];
  }

  toPlane(px, py) {
    const { width, height } = this.size();
    return [this.view.x + (px - width / 2) / this.view.scale, this.view.y - (py - height / 2) / this.view.scale];
  }

  size() {
    return { width: this.canvas.clientWidth, height: this.canvas.clientHeight };
  }

  resize() {
    const ratio = devicePixelRatio || 1;
    const { width, height } = this.size();
    if (!width || !height) return;
    const isFirst = this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio);
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const isHome = this.view.scale === this.home.scale;
    if (isFirst && isHome) this.showAll();
    this.ask();
  }

  /** Draw with the next frame. */
  ask() {
    if (this.isAsked) return;
    this.isAsked = true;
    requestAnimationFrame(() => {
      this.isAsked = false;
      this.draw();
    });
  }

  draw() {
    const { width, height } = this.canvas;
    if (!width || !height || !this.canvas.clientWidth) return;
    const context = this.canvas.getContext("2d");
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const ratio = width / this.canvas.clientWidth;
    const dot = Math.max(1, Math.round(ratio * (this.x.length > 200_000 ? 1 : this.x.length > 5_000 ? 2 : 3)));
    const scale = this.view.scale * ratio;
    const [dx, dy] = [width / 2 - this.view.x * scale, height / 2 + this.view.y * scale];
    for (let i = 0; i < this.x.length; i++) {
      const px = Math.round(dx + this.x[i] * scale - dot / 2);
      const py = Math.round(dy - this.y[i] * scale - dot / 2);
      // A point without a place is NaN, and so fails this.
      if (!(px >= 0 && py >= 0 && px + dot <= width && py + dot <= height)) continue;
      const colour = this.palette[this.index ? this.index[i] : 0];
      for (let a = py * width + px, row = 0; row < dot; row++, a += width) pixels.fill(colour, a, a + dot);
    }
    context.putImageData(image, 0, 0);
    this.events.moved?.();
  }

  /** The nearest point to a place in pixels, -1 if none is near. */
  hit(px, py) {
    const [x, y] = this.toPlane(px, py);
    let best = (NEAR / this.view.scale) ** 2;
    let found = -1;
    for (let i = 0; i < this.x.length; i++) {
      const distance = (this.x[i] - x) ** 2 + (this.y[i] - y) ** 2;
      if (distance < best) [best, found] = [distance, i];
    }
    return found;
  }

  zoom(factor, px, py) {
    const [x, y] = this.toPlane(px, py);
    const scale = Math.min(NEAREST_ZOOM, Math.max(FARTHEST_ZOOM, (this.view.scale * factor) / this.home.scale)) * this.home.scale;
    const kept = this.view.scale / scale;
    this.view = { x: x + (this.view.x - x) * kept, y: y + (this.view.y - y) * kept, scale };
    this.ask();
  }

  listen() {
    const { canvas } = this;
    const held = new Map();
    let moved = 0;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      held.set(event.pointerId, [event.offsetX, event.offsetY]);
      moved = 0;
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = held.get(event.pointerId);
      if (!before) {
        const number = this.hit(event.offsetX, event.offsetY);
        canvas.classList.toggle("over", number >= 0);
        if (number >= 0) this.events.over?.(number, event.offsetX, event.offsetY);
        else this.events.out?.();
        return;
      }
      const now = [event.offsetX, event.offsetY];
      const other = [...held].find(([id]) => id !== event.pointerId)?.[1];
      moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
      if (other) this.zoom(Math.hypot(now[0] - other[0], now[1] - other[1]) / Math.max(1, Math.hypot(before[0] - other[0], before[1] - other[1])), ...other);
      else if (moved > 3) {
        this.view.x -= (now[0] - before[0]) / this.view.scale;
        this.view.y += (now[1] - before[1]) / this.view.scale;
        this.events.out?.();
        this.ask();
      }
      held.set(event.pointerId, now);
    });
    canvas.addEventListener("pointerup", (event) => {
      held.delete(event.pointerId);
      if (moved > 3 || held.size) return;
      const number = this.hit(event.offsetX, event.offsetY);
      if (number >= 0) this.events.click?.(number);
    });
    canvas.addEventListener("pointercancel", (event) => held.delete(event.pointerId));
    canvas.addEventListener("pointerleave", () => this.events.out?.());
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), event.offsetX, event.offsetY);
      },
      { passive: false },
    );
  }
}
