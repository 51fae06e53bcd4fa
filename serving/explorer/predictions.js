// What is predicted of an object, with intervals, beside what is known of it.

import { post } from "./api.js";

export const REDSHIFT = "scalar/redshift";
const MOST_AT_ONCE = 4;
const FIRST = [REDSHIFT, "scalar/stellar_mass", "scalar/specific_star_formation_rate"];

const element = (id) => document.getElementById(id);

/** `scalar/stellar_mass` as people say it. */
export const spoken = (name) => name.replace(/^scalar\//, "").replaceAll("_", " ");

/** A number with so many significant digits. */
export const number = (value, digits = 4) =>
  value === null || value === undefined || Number.isNaN(value) ? "–" : typeof value === "string" ? value : `${Number(value.toPrecision(digits))}`;

/** Labels with those first that people ask for first. */
export const ordered = (labels) => [...FIRST.filter((name) => labels.includes(name)), ...labels.filter((name) => !FIRST.includes(name))];

/**
 * Fill the table of properties. `query` is {object_id} or {vector}; `known` are labels; `labels` all that there are.
 * Returns the redshift that is known or predicted: {value, isPredicted}, or null.
 */
export async function showPredictions(query, known, collection, units, signal) {
  const labels = ordered(collection.labels);
  element("predictions").hidden = !labels.length;
  const rows = labels.map((name) => row(name, known[name], units[name]));
  element("prediction-rows").replaceChildren(...rows.map((one) => one.line));
  element("prediction-note").textContent = "";
  let [calibrated, outside, redshift] = [true, false, known[REDSHIFT] === undefined ? null : { value: known[REDSHIFT], isPredicted: false }];
  const waiting = [...rows];
  const work = async () => {
    for (let one = waiting.shift(); one; one = waiting.shift()) {
      try {
        const found = await post("/v1/predict", { property: one.name, ...query }, { signal });
        fill(one, found);
        calibrated &&= found.calibrated;
        outside ||= found.is_outside === true;
        if (one.name === REDSHIFT && !redshift) redshift = { value: found.value, isPredicted: true };
      } catch (error) {
        if (error.name === "AbortError") throw error;
        one.predicted.textContent = "–";
        one.predicted.title = error.message;
      }
    }
  };
  await Promise.all(Array.from({ length: MOST_AT_ONCE }, work));
  element("prediction-note").textContent =
    `From the labels of the nearest neighbours${query.object_id ? ", the object itself left out" : ""}. ` +
    (calibrated ? "Intervals are calibrated on held-out objects." : "Not all intervals are calibrated.") +
    (outside ? " Unlike the objects known: do not rely on these." : "");
  element("prediction-note").classList.toggle("warning", outside);
  return redshift;
}

function row(name, known, unit) {
  const line = document.createElement("tr");
  const cells = Array.from({ length: 3 }, () => document.createElement("td"));
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = spoken(name);
  if (unit && unit !== "dimensionless") head.title = unit;
  cells[0].textContent = number(known);
  cells[1].textContent = "…";
  cells[2].className = "wide";
  line.append(head, ...cells);
  return { name, line, known, predicted: cells[1], interval: cells[2] };
}

/** The value, and its intervals as bars from the lower to the upper bound of the widest, the known value a tick. */
function fill({ predicted, interval, known }, found) {
  predicted.textContent = number(found.value);
  const bounds = found.intervals.filter((one) => one.lower !== null && one.upper !== null).sort((a, b) => a.level - b.level);
  if (!bounds.length || typeof found.value !== "number") return;
  const inner = bounds[0];
  predicted.append(span("pm", ` ${number(inner.lower)} … ${number(inner.upper)}`));
  const outer = bounds.at(-1);
  const low = Math.min(outer.lower, known ?? Infinity);
  const high = Math.max(outer.upper, known ?? -Infinity);
  const at = (value) => 4 + 112 * ((value - low) / (high - low || 1));
  const bar = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  bar.setAttribute("viewBox", "0 0 120 14");
  bar.setAttribute("class", "interval");
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", bounds.map((one) => `${Math.round(one.level * 100)} %: ${number(one.lower)} to ${number(one.upper)}`).join("; "));
  const draw = (tag, values) => {
    const part = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(values)) part.setAttribute(name, value);
    bar.append(part);
  };
  draw("line", { x1: at(outer.lower), x2: at(outer.upper), y1: 7, y2: 7, class: "outer" });
  draw("line", { x1: at(inner.lower), x2: at(inner.upper), y1: 7, y2: 7, class: "inner" });
  draw("circle", { cx: at(found.value), cy: 7, r: 3 });
  if (known !== undefined) draw("line", { x1: at(known), x2: at(known), y1: 1, y2: 13, class: "known" });
  interval.replaceChildren(bar);
}

function span(name, text) {
  const made = document.createElement("span");
  made.className = name;
  made.textContent = text;
  return made;
}
