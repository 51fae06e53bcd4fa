// What is like an object, across modalities, as pictures that lead to it.

import { post } from "./api.js";
import { number, REDSHIFT } from "./predictions.js";
import { picture } from "./pictures.js";

const COUNT = 12;

/**
 * Ask for neighbours and show them. `query` is {object_id, modality?} or {vector}. `imageModality` is the survey whose
 * pictures are shown, null for none. Returns the ids of the neighbours, each once, best first.
 */
export async function showNeighbours(query, target, collection, imageModality, choose, signal) {
  const list = document.getElementById("neighbour-list");
  const body = { ...query, k: COUNT, include: ["labels"], ...(target && { target_modality: target }) };
  const { neighbours } = await post(`/v1/collections/${encodeURIComponent(collection.name)}/search`, body, { signal });
  list.replaceChildren(
    ...neighbours.map((one) => {
      const button = document.createElement("button");
      button.type = "button";
      button.title = `${one.object_id}, ${one.modality}`;
      button.dataset.object = one.object_id;
      button.onclick = () => choose(one.object_id);
      if (imageModality) button.append(picture(one.object_id, imageModality, 104, ""));
      const told = document.createElement("span");
      const z = one.labels?.[REDSHIFT];
      told.textContent = z === undefined ? one.object_id : `z ${number(z)}`;
      const likeness = document.createElement("span");
      likeness.className = "likeness";
      likeness.textContent = one.similarity.toFixed(3);
      likeness.title = "Cosine of the angle between the two vectors";
      button.append(told, likeness);
      button.setAttribute("aria-label", `${one.object_id}, ${one.modality}, similarity ${one.similarity.toFixed(3)}${z === undefined ? "" : `, redshift ${number(z)}`}`);
      const item = document.createElement("li");
      item.append(button);
      return item;
    }),
  );
  if (!neighbours.length) {
    const item = document.createElement("li");
    item.className = "note";
    item.textContent = "No neighbour.";
    list.replaceChildren(item);
  }
  return [...new Set(neighbours.map((one) => one.object_id))];
}
