// What is like an object, across modalities, as pictures that lead to it.

import { post } from "./api.js";
import { markButtons } from "./marks.js";
import { number, REDSHIFT } from "./predictions.js";
import { picture } from "./pictures.js";
import { isSimulated, simulatedTag } from "./simulated.js";

const COUNT = 12;

/**
 * Ask for neighbours and show them. `query` is {object_id, modality?} or {vector}. `imageModality` is the survey whose
 * pictures are shown, null for none. Returns the ids of the neighbours, each once, best first.
 */
export async function showNeighbours(query, target, collection, imageModality, choose, signal) {
  const list = document.getElementById("neighbour-list");
  const body = { ...query, k: COUNT, include: ["labels"], ...(target && { target_modality: target }) };
  const { neighbours } = await post(`/v1/collections/${encodeURIComponent(collection.name)}/search`, body, { signal });
  list.replaceChildren(...tiles(neighbours, imageModality, choose, "Cosine of the angle between the two vectors"));
  if (!neighbours.length) {
    const item = document.createElement("li");
    item.className = "note";
    item.textContent = "No neighbour.";
    list.replaceChildren(item);
  }
  return [...new Set(neighbours.map((one) => one.object_id))];
}

/** List items of found objects, each a picture, who it is, and how much alike: `meaning` says what that number is. */
export function tiles(found, imageModality, choose, meaning) {
  return found.map((one) => {
    const item = document.createElement("li");
    item.append(tile(one, imageModality, choose, meaning), ...markButtons(one.object_id, false));
    return item;
  });
}

function tile(one, imageModality, choose, meaning) {
  const { object_id: id, modality, similarity } = one;
  const z = one.labels?.[REDSHIFT];
  const button = document.createElement("button");
  button.type = "button";
  button.className = "tile";
  button.title = `${id}, ${modality}`;
  button.dataset.object = id;
  button.onclick = () => choose(id);
  if (imageModality) button.append(picture(id, imageModality, 104, ""));
  const likeness = Object.assign(span(similarity.toFixed(3), "likeness"), { title: meaning });
  button.append(span(id, "who"), span(z === undefined ? "z –" : `z ${number(z)}`), likeness, ...simulatedTag(id));
  const told = [id, isSimulated(id) && "simulated", modality, `similarity ${similarity.toFixed(3)}`, z !== undefined && `redshift ${number(z)}`];
  button.setAttribute("aria-label", told.filter(Boolean).join(", "));
  return button;
}

function span(text, name = "") {
  return Object.assign(document.createElement("span"), { textContent: text, className: name });
}
