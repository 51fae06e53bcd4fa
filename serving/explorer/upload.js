// A file of one's own: chosen or dropped, embedded by the server, and shown with what is like it.

import { get, request } from "./api.js";

const TYPES = { fits: "application/fits", fit: "application/fits", npy: "application/x-npy" };
const element = (id) => document.getElementById(id);

/** `show({name, vector, modality, note})` is called with what came of a file, `fail(error)` with what went wrong. */
export function takeUploads(space, show, fail) {
  const take = (file) => file && embed(file, space).then((made) => made && show(made), fail);
  element("upload-file").onchange = (event) => {
    take(event.target.files[0]);
    event.target.value = ""; // the same file may be chosen again
  };
  let depth = 0;
  const isFile = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => {
    if (!isFile(event)) return;
    depth++;
    element("drop").hidden = false;
  });
  addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    if (!depth) element("drop").hidden = true;
  });
  addEventListener("dragover", (event) => isFile(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!isFile(event)) return;
    event.preventDefault();
    depth = 0;
    element("drop").hidden = true;
    take(event.dataTransfer.files[0]);
  });
}

async function embed(file, space) {
  const type = TYPES[file.name.split(".").at(-1).toLowerCase()];
  if (!type) throw new Error(`${file.name}: expected a file that ends in .fits or .npy`);
  const [{ modalities }, limits] = await Promise.all([get("/v1/modalities"), get("/v1/limits")]);
  if (file.size > limits.max_body_bytes) {
    throw new Error(`${file.name}: ${Math.ceil(file.size / 2 ** 20)} MiB; this server takes ${Math.floor(limits.max_body_bytes / 2 ** 20)} MiB`);
  }
  const told = await askWhat(file, modalities, type);
  if (!told) return null;
  const query = new URLSearchParams({ modality: told.modality, space, ...(told.bands && { bands: told.bands }), ...(told.zero && { zero_point: told.zero }) });
  const answer = await request(`/v1/embeddings?${query}`, { method: "POST", headers: { "Content-Type": type, Accept: "application/json" }, body: file });
  const { data } = await answer.json();
  const usable = data.find((one) => one.embedding);
  if (!usable) throw new Error(data[0]?.error?.detail ?? `${file.name}: nothing in it could be embedded`);
  const note = data.length > 1 ? `The file holds ${data.length} objects; this is number ${usable.index + 1}.` : "";
  return { name: usable.object_id ? `${file.name} (${usable.object_id})` : file.name, vector: usable.embedding, modality: told.modality, note };
}

/** Ask what the file holds; null where the user thought better of it. */
function askWhat(file, modalities, type) {
  const dialog = element("upload-dialog");
  const which = element("upload-modality");
  const known = modalities
    .filter((one) => one.kind !== "scalar")
    .sort((a, b) => b.trained - a.trained || a.name.localeCompare(b.name));
  which.replaceChildren(...known.map((one) => new Option(one.trained ? one.name : `${one.name} (not trained on)`, one.name)));
  const guess = known.find((one) => file.name.toLowerCase().includes(one.name.split("/")[1])) ?? known[0];
  if (guess) which.value = guess.name;
  const bands = element("upload-bands");
  const describe = () => {
    const chosen = known.find((one) => one.name === which.value);
    const isImage = chosen?.kind === "image";
    element("upload-bands-label").hidden = !isImage;
    element("upload-zero-label").hidden = !isImage || type !== TYPES.fits;
    element("upload-zero").value = "";
    bands.value = isImage && type === TYPES.npy ? chosen.bands.map((band) => band.name).join(",") : "";
    bands.placeholder = isImage && type === TYPES.fits ? "as the file says" : "";
    element("upload-note").textContent = !chosen
      ? ""
      : type === TYPES.fits
        ? isImage
          ? "The unit is that of the file. If it states none, give the magnitude of one unit: 22.5 for nanomaggies."
          : "Unit, wavelengths and noise are those of the file."
        : isImage
          ? `An array [bands, rows, columns] in ${chosen.unit}.`
          : chosen.kind === "spectrum"
            ? `An array [3, wavelengths]: flux in ${chosen.unit}, inverse variance, and wavelength in angstrom, vacuum.`
            : `An array of numbers in ${chosen.unit}.`;
  };
  which.onchange = describe;
  describe();
  element("upload-name").textContent = file.name;
  const given = (id) => (element(`${id}-label`).hidden ? "" : element(id).value.trim());
  return new Promise((resolve) => {
    dialog.returnValue = "cancel";
    dialog.onclose = () =>
      resolve(
        dialog.returnValue === "ok"
          ? { modality: which.value, bands: given("upload-bands"), zero: given("upload-zero") }
          : null,
      );
    dialog.showModal();
  });
}
