// A probe fitted to the marks: two classes, "more" and "less", kept on the server for whoever asks it.

import { get, post } from "./api.js";
import { KINDS, marked } from "./marks.js";

const LABEL = "marks";
const element = (id) => document.getElementById(id);
let keepsProbes = null; // a promise: whether this server keeps what callers leave

/** Offer the fit where the server keeps probes and both kinds are marked. */
export async function offerProbe(fail) {
  const button = element("marks-probe");
  button.disabled = !KINDS.every((kind) => marked(kind).length);
  element("marks-note").textContent = "";
  keepsProbes ??= get("/v1/probes").then(
    () => true,
    () => false,
  );
  button.hidden = !(await keepsProbes);
  button.onclick = () => fit(button).catch(fail);
}

async function fit(button) {
  button.disabled = true;
  try {
    const examples = KINDS.flatMap((kind) => marked(kind).map((object_id) => ({ object_id, value: kind })));
    const { id, scores, num_labels } = await post("/v1/probes", { label: LABEL, task: "classification", examples, note: "marked on the explorer" });
    const told = scores.accuracy === undefined ? "too few marks to say how good it is" : `right for ${Math.round(100 * scores.accuracy)} % of marks that it had not seen`;
    element("marks-note").textContent = `Probe ${id}, of ${num_labels} marks: ${told}. Ask it at /v1/probes/${id}/predict.`;
  } finally {
    button.disabled = false;
  }
}
