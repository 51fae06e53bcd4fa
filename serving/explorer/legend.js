// What the colours of the points mean: a bar from low to high, or a list of classes.

import { number, spoken } from "./predictions.js";

const element = (id) => document.getElementById(id);

/** Show the legend of `colours`, as `colouring` makes them, of the column `name` in `unit`. */
export function showLegend({ kind, low, high, colours, names }, name, unit) {
  for (const id of ["scale-bar", "scale-low", "scale-high"]) element(id).hidden = kind !== "scale";
  element("scale-classes").hidden = kind !== "classes";
  element("scale").title = "";
  if (kind === "scale") showBar(colours, low, high, name, unit);
  else element("scale-classes").replaceChildren(...(names ?? []).map((told, i) => classItem(told, colours[i + 1])));
}

function showBar(colours, low, high, name, unit) {
  const bar = element("scale-bar");
  const context = bar.getContext("2d");
  colours.slice(1).forEach((colour, i) => {
    context.fillStyle = colour;
    context.fillRect(i, 0, 1, bar.height);
  });
  const shown = unit && unit !== "dimensionless" ? ` ${unit}` : "";
  element("scale-low").textContent = number(low, 3);
  element("scale-high").textContent = number(high, 3) + shown;
  bar.setAttribute("aria-label", `${spoken(name)} from ${number(low, 3)} to ${number(high, 3)}${shown}`);
  element("scale").title = `${spoken(name)}${shown && `,${shown}`}; grey: unknown. The outermost percent on each side has the colours of the ends.`;
}

function classItem(told, colour) {
  const item = document.createElement("li");
  const dot = document.createElement("canvas");
  dot.width = dot.height = 10;
  const context = dot.getContext("2d");
  context.fillStyle = colour;
  context.fillRect(0, 0, 10, 10);
  item.append(dot, ` ${told}`);
  return item;
}
