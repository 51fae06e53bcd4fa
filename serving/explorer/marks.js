// Objects marked as "more like this" or "less like this".

import { change, packed, state, unpacked } from "./state.js";

export const MOST_MARKS = 100; // of each kind
export const KINDS = ["more", "less"];

/** Ids marked so: `kind` is "more" or "less". */
export const marked = (kind) => unpacked(state[kind]);

/** Mark objects, or take the mark away where all of them have it. */
export function mark(ids, kind) {
  const other = KINDS.find((one) => one !== kind);
  const isTaken = ids.every((id) => marked(kind).includes(id));
  const without = (name) => marked(name).filter((id) => !ids.includes(id));
  const now = isTaken ? without(kind) : [...without(kind), ...ids].slice(-MOST_MARKS);
  change({ [kind]: packed(now), [other]: packed(without(other)) });
}

/** The two buttons that mark an object. Small ones are out of the order of focus: keys do the same. */
export function markButtons(id, isLarge) {
  return KINDS.map((kind) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "mark";
    button.dataset.mark = kind;
    button.dataset.of = id;
    button.textContent = { more: "+", less: "−" }[kind] + (isLarge ? ` ${kind} like this` : "");
    button.title = { more: "More like this (m)", less: "Less like this (l)" }[kind];
    button.setAttribute("aria-pressed", String(marked(kind).includes(id)));
    if (!isLarge) {
      button.setAttribute("aria-label", `${id}: ${kind} like this`);
      button.tabIndex = -1;
    }
    button.onclick = () => mark([id], kind);
    return button;
  });
}
