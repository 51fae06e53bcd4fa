// What the panel says before an object is chosen: what there is, and what serves it.

const element = (id) => document.getElementById(id);

/** `isMapped`: whether there is a map to click on; `showAny()` shows one of the objects. */
export function welcome(collection, isMapped, showAny) {
  element("welcome-title").textContent = `${collection.num_objects.toLocaleString("en")} objects`;
  element("welcome-text").textContent = !isMapped
    ? "They are too many for a map. Search for one by its id, or drop a file of your own."
    : "Each point is one of them; those that the model finds alike lie together. Click one, or search, or drop a file of your own.";
  const any = element("any");
  any.hidden = !isMapped;
  any.onclick = showAny;
  const entries = [
    ["Collection", `${collection.name} (${collection.index_id})`],
    ["Model", collection.model_id],
    ...(collection.simulated_prefix ? [["Simulated", `all whose ids begin with ${collection.simulated_prefix}`]] : []),
    ["Vectors", `${collection.dimension} numbers, ${collection.space}, ${collection.index_type}`],
    ...Object.entries(collection.num_rows_of_modality).map(([name, count]) => [name, count.toLocaleString("en")]),
  ];
  element("served").replaceChildren(
    ...entries.flatMap((pair) => pair.map((text, i) => Object.assign(document.createElement(i ? "dd" : "dt"), { textContent: text }))),
  );
}
