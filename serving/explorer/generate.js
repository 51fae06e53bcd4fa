// A spectrum as the model makes it from an object's images, to lay over the one that was measured.

import { fileOf, get, post } from "./api.js";

const NUM_SAMPLES = 8;
const ARRAYS = { float32: Float32Array, float64: Float64Array, bool: Uint8Array };

/** Whether the server has /v1/generate, by its own description. */
export const canGenerate = () =>
  get("/openapi.json").then(
    ({ paths }) => "/v1/generate" in paths,
    () => false,
  );

/**
 * The mean of samples of `target`, and the interval of the middle 68 % of them where there is one, given the object's
 * `images` (modalities): {wavelength, flux, low, high}, null where the model says nothing. Throws Problem.
 */
export async function generated(objectId, images, target, signal) {
  const observations = await Promise.all(images.map((modality) => get(fileOf(objectId, "observation", { modality }), { signal })));
  const made = await post("/v1/generate", { observations, target, num_samples: NUM_SAMPLES, order: "random" }, { signal });
  const mask = array(made.mask);
  const known = (values) => Array.from(array(values), (value, i) => (mask[i] ? value : null));
  return {
    wavelength: Array.from(array(made.wavelength)),
    flux: known(made.mean),
    low: made.interval && known(made.interval.lower),
    high: made.interval && known(made.interval.upper),
  };
}

function array({ data, dtype }) {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  return new ARRAYS[dtype](bytes.buffer);
}
