// The sky in Hammer's equal-area projection, east to the left, about the middle of the objects.

import { PlaneCanvas } from "./plane_canvas.js";
import { clear, NO_MARKS, rings } from "./rings.js";

const STEPS = [30, 15, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01]; // degrees between lines
const MOST_LINES = 7; // about so many across the view

export class SkyView {
  constructor(canvas, overlay, events) {
    this.overlay = overlay;
    this.marks = NO_MARKS;
    this.hovered = -1;
    this.middle = 0;
    this.plane = new PlaneCanvas(canvas, {
      ...events,
      over: (number, x, y) => {
        this.hover(number);
        events.over(number, x, y);
      },
      out: () => {
        this.hover(-1);
        events.out();
      },
      moved: () => this.drawOverlay(),
    });
  }

  setPoints(ra, dec) {
    this.middle = middleOf(ra);
    const x = new Float32Array(ra.length);
    const y = new Float32Array(ra.length);
    for (let i = 0; i < ra.length; i++) [x[i], y[i]] = this.project(ra[i], dec[i]);
    this.plane.setPoints(x, y);
  }

  setColours({ index, colours }) {
    this.plane.setColours(index, colours);
  }

  /** What is marked, by number: see NO_MARKS. */
  setMarks(marks) {
    if (marks.own >= 0 && marks.own !== this.marks.own) this.plane.reveal(marks.own);
    this.marks = marks;
    this.drawOverlay();
  }

  /** A ring around what is hovered, here or on the other view. */
  hover(number) {
    if (number === this.hovered) return;
    this.hovered = number;
    this.drawOverlay();
  }

  showAll() {
    this.plane.showAll();
  }

  screenPosition(number) {
    return this.plane.place(number);
  }

  project(ra, dec) {
    // Half a turn to either side of the middle.
    const turned = ((((ra - this.middle) % 360) + 540) % 360) - 180;
    const [longitude, latitude] = [(-turned * Math.PI) / 180, (dec * Math.PI) / 180];
    const scale = Math.SQRT2 / Math.sqrt(1 + Math.cos(latitude) * Math.cos(longitude / 2));
    return [2 * scale * Math.cos(latitude) * Math.sin(longitude / 2), scale * Math.sin(latitude)];
  }

  drawOverlay() {
    const context = clear(this.overlay);
    if (!context) return;
    this.drawGraticule(context);
    rings(context, this.marks, this.hovered, (number) => this.plane.place(number));
  }

  drawGraticule(context) {
    const style = getComputedStyle(document.documentElement);
    const { width, height } = this.plane.size();
    const degrees = ((Math.min(width, height) / this.plane.view.scale) * 180) / Math.PI;
    const step = STEPS.findLast((s) => degrees / s <= MOST_LINES) ?? STEPS[0];
    const [, middleDec] = this.unproject(width / 2, height / 2) ?? [0, 0];
    // Meridians run together towards the poles.
    const stepRa = STEPS.findLast((s) => (degrees * (width / height)) / s / Math.max(0.15, Math.cos((middleDec * Math.PI) / 180)) <= MOST_LINES + 2) ?? 30;
    context.strokeStyle = style.getPropertyValue("--line");
    context.fillStyle = style.getPropertyValue("--faint");
    context.font = "11px system-ui, sans-serif";
    context.lineWidth = 1;
    const [fromDec, toDec, fromRa, toRa] = this.inSight(step, stepRa);
    const fine = Math.max(step / 8, 0.002);
    let labelled = Infinity; // where the label before begins: the next, to its left or right, must not touch it
    for (let ra = fromRa; ra <= toRa + 1e-9; ra += stepRa) {
      this.line(context, (dec) => [this.middle + ra, dec], Math.max(-90, fromDec), Math.min(90, toDec), fine);
      const at = this.plane.toPixels(...this.project(this.middle + ra, Math.max(fromDec, Math.min(toDec, middleDec))));
      const told = (((this.middle + ra) % 360) + 360) % 360;
      const label = `${trim(told)}°`;
      const room = context.measureText(label).width + 8;
      if (!inside(at, width, height) || Math.abs(ra) >= 179 || Math.abs(at[0] - labelled) < room) continue;
      context.fillText(label, at[0] + 3, height - 8);
      labelled = at[0];
    }
    for (let dec = fromDec; dec <= toDec + 1e-9; dec += step) {
      if (Math.abs(dec) > 89.99) continue;
      this.line(context, (ra) => [this.middle + ra, dec], fromRa, toRa, Math.max(stepRa / 8, 0.002));
      // At the left, where the east is.
      const [x, y] = this.plane.toPixels(...this.project(this.middle + Math.min(179.999, toRa), dec));
      if (y > 30 && y < height - 24) context.fillText(`${dec > 0 ? "+" : ""}${trim(dec)}°`, Math.max(6, x - 32), y + (x > 38 ? 4 : -3));
    }
  }

  /** The lines that the view may show: declinations from and to, and right ascensions relative to the middle. */
  inSight(step, stepRa) {
    const { width, height } = this.plane.size();
    const corners = [];
    for (const px of [0, width / 4, width / 2, (3 * width) / 4, width]) {
      for (const py of [0, height / 4, height / 2, (3 * height) / 4, height]) corners.push(this.unproject(px, py));
    }
    if (corners.some((corner) => !corner)) return [-90, 90, -180, 180];
    const decs = corners.map((corner) => corner[1]);
    const ras = corners.map((corner) => corner[0]);
    const offset = Math.floor(this.middle / stepRa) * stepRa - this.middle;
    return [
      Math.floor(Math.min(...decs) / step) * step,
      Math.ceil(Math.max(...decs) / step) * step,
      Math.max(-180, Math.floor((Math.min(...ras) - offset) / stepRa) * stepRa + offset),
      Math.min(180, Math.ceil((Math.max(...ras) - offset) / stepRa) * stepRa + offset),
    ];
  }

  /** Right ascension relative to the middle, and declination, at a place in pixels; null outside the sky. */
  unproject(px, py) {
    const [x, y] = this.plane.toPlane(px, py);
    const z2 = 1 - (x / 4) ** 2 - (y / 2) ** 2;
    if (z2 < 0.5) return null;
    const z = Math.sqrt(z2);
    const longitude = 2 * Math.atan2(z * x, 2 * (2 * z2 - 1));
    return [(-longitude * 180) / Math.PI, (Math.asin(Math.max(-1, Math.min(1, z * y))) * 180) / Math.PI];
  }

  line(context, at, from, to, step) {
    context.beginPath();
    const count = Math.min(400, Math.max(2, Math.ceil((to - from) / step)));
    for (let i = 0; i <= count; i++) {
      const [ra, dec] = at(from + ((to - from) * i) / count);
      // At exactly half a turn the two edges of the sky are one.
      const relative = Math.max(-179.999, Math.min(179.999, ra - this.middle));
      const [px, py] = this.plane.toPixels(...this.project(this.middle + relative, dec));
      if (i) context.lineTo(px, py);
      else context.moveTo(px, py);
    }
    context.stroke();
  }
}

/** The mean direction, rounded to ten degrees where the objects are all over the sky. */
function middleOf(ra) {
  let [sin, cos, count] = [0, 0, 0];
  for (const a of ra) {
    if (Number.isNaN(a)) continue;
    sin += Math.sin((a * Math.PI) / 180);
    cos += Math.cos((a * Math.PI) / 180);
    count++;
  }
  if (!count || Math.hypot(sin, cos) / count < 0.1) return 180;
  const mean = ((Math.atan2(sin, cos) * 180) / Math.PI + 360) % 360;
  return Math.hypot(sin, cos) / count < 0.9 ? Math.round(mean / 10) * 10 : mean;
}

const inside = ([x, y], width, height) => x > 30 && x < width - 30 && y > -height && y < 2 * height;
const trim = (value) => String(Math.round(value * 1000) / 1000);
