// All that is known of one object: images, spectrum, properties, neighbours; the same for a file of one's own.

import { fileOf, get } from "./api.js";
import { canGenerate, generated } from "./generate.js";
import { markButtons } from "./marks.js";
import { showNeighbours } from "./neighbours.js";
import { figures } from "./pictures.js";
import { showPredictions } from "./predictions.js";
import { simulatedTag } from "./simulated.js";
import { SpectrumView } from "./spectrum_view.js";
import { change, numSteps, state } from "./state.js";

const element = (id) => document.getElementById(id);

export class ObjectPanel {
  /** `onNeighbours(ids)` is called with what is like the object; `fail(error)` where something cannot be shown. */
  constructor(server, onNeighbours, fail) {
    this.server = server;
    this.onNeighbours = onNeighbours;
    this.fail = fail;
    this.spectrum = new SpectrumView();
    this.current = null; // {query, id, has}: what is shown
    this.abort = new AbortController();
    const { modalities } = server;
    element("target").replaceChildren(new Option("any", ""), ...modalities.map((name) => new Option(name, name)));
    element("ask").onchange = (event) => change({ ask: event.target.value });
    element("target").onchange = (event) => change({ target: event.target.value });
  }

  /** Show an object of the index. */
  async showObject(id) {
    const signal = this.begin();
    try {
      const object = await get(`/v1/objects/${encodeURIComponent(id)}`, { signal });
      this.current = { id, query: { object_id: id }, has: object.modalities };
      this.title(id, place(object));
      element("object-marks").replaceChildren(...markButtons(id, true));
      element("ask").parentElement.hidden = false;
      this.fillAsk(object.modalities);
      // One after the other begins, none waits for another.
      await Promise.all([
        this.neighbours(signal),
        this.measured(id, object.labels, signal),
      ]);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.current = null;
      element("object").hidden = true;
      element("welcome").hidden = false;
      this.fail(error);
    }
  }

  /** Show what is like a file of one's own. */
  async showUpload({ name, vector, modality, note }) {
    const signal = this.begin();
    this.current = { id: null, query: { vector }, has: [] };
    this.title(name, [document.createTextNode(`Uploaded as ${modality}. ${note}`)]);
    element("ask").parentElement.hidden = true;
    element("images").replaceChildren();
    this.spectrum.clear();
    try {
      await Promise.all([this.neighbours(signal), this.predictions({}, signal)]);
    } catch (error) {
      if (error.name !== "AbortError") this.fail(error);
    }
  }

  /** Ask for the neighbours again, by what the user chose. */
  async refresh() {
    if (!this.current) return;
    this.fillAsk(this.current.has);
    try {
      await this.neighbours(this.abort.signal);
    } catch (error) {
      if (error.name !== "AbortError") this.fail(error);
    }
  }

  /** Nothing is looked at. */
  close() {
    this.begin();
    this.current = null;
    element("object").hidden = true;
    element("welcome").hidden = false;
    document.title = "Armillary explorer";
    this.onNeighbours([]);
  }

  /** Colours of the page have changed. */
  redraw() {
    this.spectrum.draw();
  }

  begin() {
    this.abort.abort();
    this.abort = new AbortController();
    element("notice").hidden = true;
    return this.abort.signal;
  }

  title(name, line) {
    element("welcome").hidden = true;
    element("object").hidden = false;
    element("object-id").replaceChildren(name, ...simulatedTag(name));
    element("object-place").replaceChildren(...line);
    element("object-marks").replaceChildren();
    element("back").disabled = !numSteps();
    document.title = `${name} · Armillary`;
    element("said").textContent = `Shown: ${element("object-id").textContent}`;
    element("panel").scrollTop = 0;
  }

  fillAsk(has) {
    const ask = element("ask");
    ask.replaceChildren(new Option("all it has", ""), ...has.map((name) => new Option(name, name)));
    ask.value = has.includes(state.ask) ? state.ask : "";
    element("target").value = this.server.modalities.includes(state.target) ? state.target : "";
  }

  async neighbours(signal) {
    const { query, id, has } = this.current;
    const asked = id !== null && has.includes(state.ask) ? { ...query, modality: state.ask } : query;
    // A chosen target that this index has not, from an old link say, is no filter.
    const target = this.server.modalities.includes(state.target) ? state.target : this.server.defaultTarget;
    element("target").value = target;
    const found = await showNeighbours(asked, target, this.server.collection, this.server.imageModality, (chosen) => change({ object: chosen }), signal);
    this.onNeighbours(found);
  }

  async measured(id, labels, signal) {
    const observed = this.server.hasDataset ? await this.observations(id, signal) : [];
    const kinds = (kind) => observed.filter((one) => one.kind === kind).map((one) => one.modality);
    element("images").replaceChildren(...figures(id, kinds("image")));
    const known = { ...labels };
    this.offerGenerating(id, kinds("image"), signal);
    await Promise.all([
      this.spectrum.show(id, kinds("spectrum"), signal),
      this.predictions(known, signal).then((redshift) => {
        if (redshift && !signal.aborted) this.spectrum.setRedshift(redshift.value, redshift.isPredicted);
      }),
    ]);
  }

  /** The button that lays the model's own spectrum over the measured one, where server and object allow it. */
  async offerGenerating(id, images, signal) {
    const button = element("generate");
    button.hidden = true;
    this.server.canGenerate ??= canGenerate();
    if (!images.length || !(await this.server.canGenerate) || signal.aborted) return;
    button.hidden = button.disabled = false;
    button.textContent = "Generate";
    button.title = "What the model expects this spectrum to be, from the images alone";
    button.onclick = async () => {
      button.disabled = true;
      button.textContent = "Generating…";
      const target = element("spectrum-which").value;
      try {
        const made = await generated(id, images, target, signal);
        if (element("spectrum-which").value === target) this.spectrum.setGenerated(made);
      } catch (error) {
        if (error.name === "AbortError") return;
        this.fail(error);
      }
      button.disabled = false;
      button.textContent = "Generate";
    };
  }

  predictions(known, signal) {
    const { query } = this.current;
    return showPredictions(query, known, this.server.collection, this.server.units, signal);
  }

  async observations(id, signal) {
    try {
      return (await get(fileOf(id, "observations"), { signal })).observations;
    } catch (error) {
      if (error.status !== 404) throw error;
      return []; // an object of the index that the dataset does not have
    }
  }
}

/** Where it is, and what archives know of it. */
function place({ ra, dec, links, modalities }) {
  const parts = [document.createTextNode(ra === null ? "Position unknown" : `${ra.toFixed(5)}°  ${dec < 0 ? "−" : "+"}${Math.abs(dec).toFixed(5)}°`)];
  for (const [name, address] of Object.entries(links)) {
    const link = document.createElement("a");
    link.href = address;
    link.target = "_blank";
    link.rel = "noreferrer noopener";
    link.textContent = { legacy_survey_viewer: "Legacy Survey", simbad: "SIMBAD" }[name] ?? name;
    parts.push(document.createTextNode("  ·  "), link);
  }
  const list = document.createElement("span");
  list.className = "chips";
  for (const name of modalities) {
    const chip = document.createElement("span");
    chip.textContent = name;
    list.append(chip);
  }
  return [...parts, list];
}

