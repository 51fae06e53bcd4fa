// Which objects are simulated, as the server knows by the record of its dataset.

let prefix = null;

/** Take the prefix of simulated ids from what the server says of a collection. */
export function knowSimulated(collection) {
  prefix = collection.simulated_prefix ?? null;
}

/** Whether an object is simulated; null where the server does not know. */
export const isSimulated = (id) => (prefix === null ? null : id.startsWith(prefix));

/** A label to put beside a simulated object; nothing for others. */
export function simulatedTag(id, text = "simulated") {
  if (!isSimulated(id)) return [];
  const tag = document.createElement("span");
  tag.className = "simulated";
  tag.textContent = text;
  tag.title = "Simulated: no such object is on the sky";
  return [tag];
}
