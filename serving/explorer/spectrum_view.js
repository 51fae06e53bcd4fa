// A spectrum with its error, the lines that one knows at the object's redshift, and a generated one over it.

import { uPlot } from "./vendor/vendor.js";
import { downloads, fileOf, get } from "./api.js";

const HEIGHT = 230;
// Vacuum wavelengths, angstrom, those first whose names matter most; true for those that are mostly seen in absorption.
const LINES = [
  ["Hα", 6564.61], ["[O III]", 5008.24], ["[O II]", 3728.48], ["Hβ", 4862.68], ["Lyα", 1215.67], ["C IV", 1549.48],
  ["Mg II", 2799.12], ["C III]", 1908.73], ["H+K", 3934.78, true], ["Mg b", 5176.63, true], ["[S II]", 6718.29],
  ["Na D", 5895.6, true], ["Hγ", 4341.68], ["Hδ", 4102.89], ["G", 4305.61, true], ["[Ne III]", 3869.86],
  ["", 3969.59, true], ["", 4960.3], ["", 6549.86], ["", 6585.27], ["", 6732.67],
];

const element = (id) => document.getElementById(id);

export class SpectrumView {
  constructor() {
    this.box = element("spectrum-plot");
    this.spectrum = this.generated = this.plot = null;
    this.redshift = null;
    for (const id of ["spectrum-smooth", "spectrum-lines"]) element(id).onchange = () => this.draw();
    new ResizeObserver(() => {
      const width = this.box.clientWidth;
      if (this.plot && width && Math.abs(width - this.plot.width) > 1) this.plot.setSize({ width, height: HEIGHT });
    }).observe(this.box);
  }

  /** Show the spectra that an object has; `names` are modalities. */
  async show(objectId, names, signal) {
    this.clear();
    element("spectra").hidden = !names.length;
    if (!names.length) return;
    const which = element("spectrum-which");
    which.replaceChildren(...names.map((name) => new Option(name.split("/")[1], name)));
    which.hidden = names.length < 2;
    const load = async () => {
      const modality = which.value;
      this.spectrum = await get(fileOf(objectId, "spectrum", { modality }), { signal });
      this.generated = null;
      downloads(element("spectrum-file"), fileOf(objectId, "spectrum.fits", { modality }), `${objectId}-${modality.replace("/", "-")}.fits`);
      this.draw();
    };
    which.onchange = load;
    await load();
  }

  clear() {
    this.plot?.destroy();
    this.plot = this.spectrum = this.generated = this.redshift = null;
    element("spectra").hidden = true;
    element("spectrum-note").textContent = "";
  }

  /** Where lines are marked: a redshift and whether it is only predicted; null for none. */
  setRedshift(redshift, isPredicted) {
    this.redshift = redshift === null ? null : { value: redshift, isPredicted };
    this.draw();
  }

  /** A generated spectrum over this one, as `generate.js` has it. */
  setGenerated(generated) {
    this.generated = generated;
    this.draw();
  }

  draw() {
    if (!this.spectrum) return;
    this.plot?.destroy();
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const data = smoothed(this.spectrum, Number(element("spectrum-smooth").value));
    const columns = [data.wavelength, data.low, data.high, data.flux];
    const series = [
      { label: "Å", value: (_, v) => (v == null ? "–" : v.toFixed(1)) },
      { label: "low", stroke: "transparent", points: { show: false } },
      { label: "high", stroke: "transparent", points: { show: false } },
      { label: "flux", stroke: colour("--flux"), width: 1, points: { show: false }, value: told },
    ];
    const bands = [{ series: [2, 1], fill: colour("--band") }];
    const { wavelength, flux, low, high } = this.generated ?? {};
    if (flux) {
      columns.push(resampled(wavelength, flux, data.wavelength));
      series.push({ label: "generated", stroke: colour("--mark"), width: 1.5, points: { show: false }, value: told });
      if (low) {
        for (const bound of [low, high]) {
          columns.push(resampled(wavelength, bound, data.wavelength));
          series.push({ label: "bound", class: "bound", stroke: "transparent", points: { show: false } });
        }
        bands.push({ series: [6, 5], fill: colour("--mark-band") });
      }
    }
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 }, font: "11px system-ui, sans-serif" };
    this.plot = new uPlot(
      {
        width: this.box.clientWidth || 400,
        height: HEIGHT,
        padding: [16, 6, 0, 0],
        scales: { x: { time: false }, y: { range: (_, low, high) => reach(data, low, high) } },
        series,
        bands,
        axes: [
          { ...axis, size: 34, values: (_, ticks) => ticks.map((t) => `${t}`) },
          { ...axis, size: 46, values: (_, ticks) => ticks.map((t) => `${Number(t.toPrecision(6))}`) },
        ],
        cursor: { points: { show: false }, drag: { x: true, y: false } },
        legend: { show: true },
        hooks: { draw: [(plot) => element("spectrum-lines").checked && this.drawLines(plot, colour)] },
      },
      columns,
      this.box,
    );
    this.plot.root.setAttribute("role", "img");
    this.plot.root.setAttribute("aria-label", `Spectrum ${this.spectrum.modality}, ${Math.round(data.wavelength[0])} to ${Math.round(data.wavelength.at(-1))} angstrom`);
    const z = this.redshift;
    element("spectrum-note").textContent =
      `Å, vacuum; 1e-17 erg/s/cm²/Å. Band: 1 σ.` +
      (this.generated ? " Orange: what the model expects from the images alone, with the middle 68 % of its samples." : "") +
      (z ? ` Lines at ${z.isPredicted ? "the predicted" : "the known"} redshift ${z.value.toFixed(4)}.` : "");
  }

  drawLines(plot, colour) {
    if (!this.redshift) return;
    const { ctx: context, bbox } = plot;
    const ratio = devicePixelRatio || 1;
    context.save();
    context.font = `${10 * ratio}px system-ui, sans-serif`;
    context.textAlign = "center";
    const taken = [];
    for (const [name, rest, isAbsorption] of LINES) {
      const x = plot.valToPos(rest * (1 + this.redshift.value), "x", true);
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      context.strokeStyle = context.fillStyle = colour(isAbsorption ? "--soft" : "--accent");
      context.setLineDash([3 * ratio, 3 * ratio]);
      context.globalAlpha = 0.75;
      context.lineWidth = ratio;
      context.beginPath();
      context.moveTo(x, bbox.top);
      context.lineTo(x, bbox.top + bbox.height);
      context.stroke();
      const wide = context.measureText(name).width / 2 + 2 * ratio;
      context.globalAlpha = 1;
      if (name && taken.every(([left, right]) => x + wide < left || x - wide > right)) {
        context.fillText(name, x, bbox.top - 4 * ratio);
        taken.push([x - wide, x + wide]);
      }
    }
    context.restore();
  }
}

const told = (_, value) => (value == null ? "–" : Number(value.toPrecision(4)).toString());

/** The range of the flux, without what only a few bad or very noisy pixels reach. */
function reach(data, low, high) {
  const sigma = data.flux.map((v, i) => (v === null ? Infinity : data.high[i] - v));
  const most = 3 * [...sigma].sort((a, b) => a - b)[Math.floor(sigma.length / 2)] || Infinity;
  const known = data.flux.filter((v, i) => v !== null && sigma[i] <= most).sort((a, b) => a - b);
  if (!known.length) return [low ?? 0, high ?? 1];
  const at = (share) => known[Math.round(share * (known.length - 1))];
  const margin = 0.08 * (at(0.999) - at(0.004) || 1);
  return [Math.min(at(0.004), 0.9 * at(0.5)) - margin, at(0.999) + margin];
}

/** Means over `width` pixels, weighed by inverse variance, with their errors; null where nothing is known. */
function smoothed({ wavelength, flux, error }, width) {
  const half = (width - 1) / 2;
  const [weight, product] = [new Float64Array(flux.length + 1), new Float64Array(flux.length + 1)];
  flux.forEach((value, i) => {
    const w = value === null || error[i] === null ? 0 : 1 / error[i] ** 2;
    weight[i + 1] = weight[i] + w;
    product[i + 1] = product[i] + w * (value ?? 0);
  });
  const columns = { wavelength: [], flux: [], low: [], high: [] };
  for (let i = 0; i < flux.length; i++) {
    if (!(wavelength[i] > (columns.wavelength.at(-1) ?? 0))) continue; // padding
    const [from, to] = [Math.max(0, i - half), Math.min(flux.length, i + half + 1)];
    const w = weight[to] - weight[from];
    const value = w > 0 ? (product[to] - product[from]) / w : null;
    const sigma = w > 0 ? 1 / Math.sqrt(w) : null;
    columns.wavelength.push(wavelength[i]);
    columns.flux.push(value);
    columns.low.push(value === null ? null : value - sigma);
    columns.high.push(value === null ? null : value + sigma);
  }
  return columns;
}

/** Another spectrum on these wavelengths, by straight lines between its own. */
function resampled(wavelength, flux, onto) {
  let i = 0;
  return onto.map((w) => {
    while (i < wavelength.length - 2 && wavelength[i + 1] < w) i++;
    const [a, b] = [wavelength[i], wavelength[i + 1]];
    if (w < a || w > b || flux[i] === null || flux[i + 1] === null) return null;
    return flux[i] + ((flux[i + 1] - flux[i]) * (w - a)) / (b - a);
  });
}

