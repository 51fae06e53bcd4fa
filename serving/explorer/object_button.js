// An object's id in a list, which leads to it.

import { simulatedTag } from "./simulated.js";

/** A button that calls `choose(id)`; it says if the object is simulated. */
export function objectButton(id, choose) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.object = id;
  button.onclick = () => choose(id);
  button.append(id, ...simulatedTag(id, "sim"));
  return button;
}
