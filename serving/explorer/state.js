// What is looked at, held in the address of the page, so that a link restores it.

const DEFAULTS = {
  object: "", // its id
  colour: "", // a label, "modalities", or "none"; empty: the first label
  view: "both", // map, sky or both
  projection: "pca",
  ask: "", // the modality that is asked with; empty: all that the object has
  target: "", // the modality of neighbours; empty: any
  more: "", // ids, packed, of objects marked as what is looked for
  less: "", // and of those marked as what is not
  ranked: "", // whether the collection is ranked by the marks
  selected: "", // ids, packed, of a small selection
};

/** Ids as one text, whatever they are made of; and back. */
export const packed = (ids) => ids.map(encodeURIComponent).join(",");
export const unpacked = (text) => text.split(",").filter(Boolean).flatMap(decoded);

function decoded(text) {
  try {
    return [decodeURIComponent(text)];
  } catch {
    return []; // an address that was cut
  }
}

const listeners = [];
export const state = { ...DEFAULTS };

/** Call `listener(changed)` after each change, with the set of the names that changed. */
export function onChange(listener) {
  listeners.push(listener);
}

/** Change some of the state. A change of object is a step of the browser's history, other changes are not. */
export function change(values) {
  apply(values, (changed) => {
    const address = location.pathname + query();
    if (changed.has("object")) history.pushState({ step: numSteps() + 1 }, "", address);
    else history.replaceState(history.state, "", address);
  });
}

/** How many objects were looked at before this one, on this page. */
export const numSteps = () => history.state?.step ?? 0;

/** To the object before; never off the page. */
export const back = () => numSteps() && history.back();

/** Take the state from the address. */
export function restore() {
  const given = new URLSearchParams(location.search);
  apply(Object.fromEntries(Object.keys(DEFAULTS).map((name) => [name, given.get(name) ?? DEFAULTS[name]])));
}

function apply(values, record) {
  const changed = new Set(Object.keys(values).filter((name) => name in DEFAULTS && state[name] !== values[name]));
  if (!changed.size) return;
  for (const name of changed) state[name] = values[name];
  record?.(changed);
  for (const listener of listeners) listener(changed);
}

function query() {
  const told = new URLSearchParams(Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name]));
  return told.size ? `?${told}` : "";
}

addEventListener("popstate", restore);
