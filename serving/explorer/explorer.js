// The page: what the server has, the two views of all objects, and the panel of the one that is looked at.

import { get, getTensors, Problem } from "./api.js";
import { colouring, isDark } from "./colours.js";
import { lasso, within } from "./lasso.js";
import { showLegend } from "./legend.js";
import { MapView } from "./map_view.js";
import { mark, marked } from "./marks.js";
import { ObjectPanel } from "./object_panel.js";
import { number, ordered, spoken } from "./predictions.js";
import { Ranking } from "./ranking.js";
import { NO_MARKS } from "./rings.js";
import { searchBox } from "./search_box.js";
import { Selection } from "./selection.js";
import { isSimulated, knowSimulated } from "./simulated.js";
import { SkyView } from "./sky_view.js";
import { back, change, onChange, restore, state } from "./state.js";
import { takeUploads } from "./upload.js";
import { welcome } from "./welcome.js";

const UMAP_EVERY_MS = 4000;
const VIEWS = ["both", "map", "sky"];
const element = (id) => document.getElementById(id);

let server = null; // what is served: {collection, modalities, units, hasDataset, imageModality, defaultTarget}
let panel, map, sky, ranking, selection;
let columns = {}; // of the map, by name, as they came
let indexId = ""; // whose rows these are
let noMap = null; // why there is none: the index is too large for one
let numObjects = 0;
let modalityNames = [];
let colours = null;
let neighbours = []; // ids
let hovering = 0;
let marking = 0;
const idOfNumber = new Map();
const numberOfId = new Map();

start().catch(fail);

async function start() {
  setTheme(localStorage.getItem("armillary-theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  wireButtons();
  restore();
  const { collections } = await get("/v1/collections");
  const [collection] = collections;
  if (!collection) {
    element("views").hidden = true;
    element("welcome-title").textContent = "This server has no index";
    element("welcome-text").textContent = "Start it with an index and there is something to look at here; the API is described under API.";
    document.documentElement.dataset.ready = "true";
    return;
  }
  await loadColumns(collection).catch((error) => {
    if (error.status !== 404) throw error;
    noMap = error;
  });
  server = await describe(collection);
  knowSimulated(collection);
  const events = { click: (number) => idOf(number).then(show, fail) };
  if (noMap) document.body.dataset.map = "none";
  else [map, sky] = makeViews(events);
  panel = new ObjectPanel(server, showAround, fail);
  makeLists();
  searchBox(collection, show, fail);
  takeUploads(collection.space, (made) => {
    change({ object: "" });
    panel.showUpload(made);
  }, fail);
  fillColours(collection);
  welcome(collection, noMap === null, async () => show(await idOf(Math.floor(Math.random() * numObjects))));
  onChange(follow);
  showView();
  await Promise.all([showObject(), ranking.show(), noMap ? null : drawMap().then(() => selection.follow())]);
  document.documentElement.dataset.ready = "true";
  if (state.projection === "umap" && map) await project("umap");
}

const show = (id) => change({ object: id });

/** The marks with the ranking by them, and the selection. */
function makeLists() {
  const lists = { choose: show, changed: () => showMarks().catch(fail), fail };
  selection = new Selection({ ...lists, pointsOf, label: labelShown, mark: (ids) => mark(ids, "more") });
  ranking = new Ranking(server, { ...lists, select: (ids) => selection.setIds(ids).catch(fail) });
  element("ranking-select").hidden = element("select").hidden = noMap !== null;
  for (const [name, view] of [["map", map], ["sky", sky]]) {
    lasso(element(`${name}-lasso`), (polygon, isMore) => {
      setSelecting(false);
      const found = within(polygon, numObjects, (number) => view.screenPosition(number));
      selection.set(isMore ? [...selection.numbers, ...found] : found).catch(fail);
    });
  }
}

/** Whether a drag draws a line around points, or moves the view. */
function setSelecting(isSelecting) {
  element("views").dataset.selecting = String(isSelecting);
  element("select").setAttribute("aria-pressed", String(isSelecting));
}

const isSelecting = () => element("views").dataset.selecting === "true";

/** The two views; what is hovered on one is ringed on the other. */
function makeViews(events) {
  const linked = (where, other) => ({
    ...events,
    over: (number, x, y) => {
      other().hover(number);
      over(number, x, y, where);
    },
    out,
  });
  return [
    new MapView(element("map-canvas"), element("map-overlay"), linked("map", () => sky)),
    new SkyView(element("sky-canvas"), element("sky-overlay"), linked("sky", () => map)),
  ];
}

async function describe(collection) {
  const modalities = Object.keys(collection.num_rows_of_modality);
  const units = await get("/v1/modalities").then(
    (told) => Object.fromEntries(told.modalities.map((one) => [one.name, one.unit])),
    () => ({}), // while the model loads
  );
  const images = modalities.filter((name) => /^image\/[^+]+$/.test(name));
  const hasDataset = collection.has_observations;
  const imageModality = hasDataset ? (images.find((name) => name === "image/legacysurvey") ?? images[0] ?? null) : null;
  return { collection, modalities, units, hasDataset, imageModality, defaultTarget: imageModality ?? "" };
}

// --- the views of all objects

const mapPath = (names, projection = "pca", name = server.collection.name) => {
  const query = new URLSearchParams({ projection, columns: names.join(",") });
  return `/v1/collections/${encodeURIComponent(name)}/map?${query}`;
};

async function loadColumns(collection) {
  const { tensors, metadata } = await getTensors(mapPath(["x", "y", "ra", "dec"], "pca", collection.name));
  columns = tensors;
  indexId = metadata.index_id;
  numObjects = Number(metadata.num_objects);
  modalityNames = JSON.parse(metadata.modality_names);
  const known = JSON.parse(metadata.num_labelled);
  // A label that no object has is nothing to look at.
  collection.labels = collection.labels.filter((label) => known[label] > 0);
}

async function drawMap() {
  element("map-note").textContent = `· ${numObjects.toLocaleString("en")} objects`;
  const placed = columns.dec.reduce((count, dec) => count + !Number.isNaN(dec), 0);
  element("sky-note").textContent = placed === numObjects ? "" : `· ${placed ? placed.toLocaleString("en") : "no"} objects with a position`;
  await recolour();
  sky.setPoints(columns.ra, columns.dec);
  await map.setPoints(columns.x, columns.y);
  await showMarks();
}

async function project(projection) {
  if (!map) return;
  for (const button of element("projection").children) button.setAttribute("aria-pressed", String(button.dataset.value === projection));
  if (projection === "pca") {
    element("map-note").textContent = `· ${numObjects.toLocaleString("en")} objects`;
    return map.setPoints(columns.x, columns.y, true);
  }
  while (state.projection === "umap") {
    try {
      const made = await getTensors(mapPath(["x", "y"], "umap"));
      if (state.projection !== "umap") return;
      if (made) {
        element("map-note").textContent = `· ${numObjects.toLocaleString("en")} objects`;
        return await map.setPoints(made.tensors.x, made.tensors.y, true);
      }
    } catch (error) {
      change({ projection: "pca" });
      return fail(error);
    }
    element("map-note").textContent = "· UMAP is being laid out; this is PCA";
    await new Promise((resolve) => setTimeout(resolve, UMAP_EVERY_MS));
  }
}

async function recolour() {
  if (!map) return;
  const name = colourShown();
  element("colour").value = name;
  if (name !== "none" && !columns[name]) Object.assign(columns, (await getTensors(mapPath([name]))).tensors);
  if (name !== colourShown()) return; // another was chosen meanwhile
  colours = colouring(columns[name], numObjects, name === "modalities" ? combination : null);
  showLegend(colours, name, server.units[name]);
  sky.setColours(colours);
  await map.setColours(colours);
}

const colourShown = () => state.colour || (ordered(server.collection.labels)[0] ?? "modalities");

/** The label that the points are coloured by, "" where they are coloured by none. */
const labelShown = () => (server.collection.labels.includes(colourShown()) ? colourShown() : "");

/** Bits as the surveys that an object has. */
function combination(bits) {
  const names = modalityNames.filter((_, i) => bits & (1 << i));
  return names.length === modalityNames.length ? "all" : names.map((name) => name.split("/")[1]).join(" + ");
}

function fillColours({ labels }) {
  const select = element("colour");
  const known = document.createElement("optgroup");
  known.label = "Labels";
  known.append(...ordered(labels).map((name) => new Option(spoken(name), name)));
  select.replaceChildren(...(labels.length ? [known] : []), new Option("surveys", "modalities"), new Option("none", "none"));
  select.onchange = () => change({ colour: select.value });
}

function showView() {
  const view = VIEWS.includes(state.view) ? state.view : "both";
  element("views").dataset.view = view;
  for (const button of element("view").children) button.setAttribute("aria-pressed", String(button.dataset.value === view));
  for (const button of element("projection").children) button.setAttribute("aria-pressed", String(button.dataset.value === state.projection));
}

// --- the object

async function showObject() {
  if (state.object) await panel.showObject(state.object);
  else if (panel.current?.id !== null) panel.close();
}

async function showAround(ids) {
  neighbours = ids;
  for (const button of ["previous", "next"]) element(button).disabled = !ids.length;
  await showMarks();
}

/** Draw what is marked on both views. */
async function showMarks() {
  if (!map || !selection) return;
  const own = panel.current?.id ?? null;
  const ids = { near: panel.current ? neighbours : ranking.ids, more: marked("more"), less: marked("less") };
  const mine = ++marking;
  await learnNumbers([...(own === null ? [] : [own]), ...Object.values(ids).flat()]);
  if (mine !== marking) return; // more has changed meanwhile
  const numbers = (names) => names.map((id) => numberOfId.get(id) ?? -1);
  const marks = { ...NO_MARKS, own: numberOfId.get(own) ?? -1, selected: selection.numbers };
  for (const [name, its] of Object.entries(ids)) marks[name] = numbers(its);
  for (const view of [map, sky]) view.setMarks(marks);
}

async function learnNumbers(ids) {
  const wanted = [...new Set(ids)].filter((id) => !numberOfId.has(id));
  if (!wanted.length) return;
  const { points } = await pointsOf(wanted.map((id) => ["object_id", id]));
  for (const point of points) numberOfId.set(point.object_id, point.number);
}

let trail = []; // what arrows walk along, and where on it one is
let step = -1;

/** The ranking, where the walk began at an object of it; else the neighbours of the object at which it began. */
function walk(direction) {
  if (step < 0 || trail[step] !== state.object) {
    trail = ranking.ids.includes(state.object) ? ranking.ids : [state.object, ...neighbours];
    step = trail.indexOf(state.object);
  }
  if (trail.length < 2) return;
  step = (step + direction + trail.length) % trail.length;
  change({ object: trail[step] });
}

async function follow(changed) {
  try {
    if (changed.has("view")) showView();
    if (changed.has("object")) {
      out();
      await showObject();
    }
    if (changed.has("ask") || changed.has("target")) await panel.refresh();
    if (changed.has("colour")) await recolour();
    if (changed.has("projection")) await project(state.projection);
    if (["more", "less", "ranked"].some((name) => changed.has(name))) await ranking.show();
    if (changed.has("selected")) await selection.follow();
  } catch (error) {
    fail(error);
  }
}

async function idOf(number) {
  if (!idOfNumber.has(number)) {
    const { points } = await pointsOf([["number", number]]);
    idOfNumber.set(number, points[0].object_id);
    numberOfId.set(points[0].object_id, number);
  }
  return idOfNumber.get(number);
}

/** Ids and numbers of objects. Where the index has changed since the map came, the page is loaded anew. */
async function pointsOf(query, name = server.collection.name) {
  const found = await get(`/v1/collections/${encodeURIComponent(name)}/map/points?${new URLSearchParams(query)}`);
  if (found.index_id !== indexId) location.reload();
  return found;
}

// --- what is hovered

function over(hovered, x, y, where) {
  const mine = ++hovering;
  const tip = element("tip");
  const box = element(where).getBoundingClientRect();
  const frame = element("views").getBoundingClientRect();
  const name = colourShown();
  const value = columns[name]?.[hovered];
  const told = value === undefined ? "" : name === "modalities" ? combination(value) : `${spoken(name)} ${number(value)}`;
  const place = Number.isNaN(columns.dec[hovered]) ? "" : `${columns.ra[hovered].toFixed(3)}° ${columns.dec[hovered].toFixed(3)}°`;
  const write = (id) => (tip.textContent = [id && isSimulated(id) ? `${id}, simulated` : id, told, place].filter(Boolean).join("\n"));
  write(idOfNumber.get(hovered) ?? "");
  tip.hidden = false;
  const left = box.left - frame.left + x;
  tip.style.left = `${Math.min(left + 14, frame.width - tip.offsetWidth - 6)}px`;
  tip.style.top = `${Math.min(box.top - frame.top + y + 14, frame.height - tip.offsetHeight - 6)}px`;
  if (!idOfNumber.has(hovered)) setTimeout(() => mine === hovering && idOf(hovered).then((id) => mine === hovering && write(id), () => {}), 80);
}

function out() {
  hovering++;
  for (const view of [map, sky]) view?.hover(-1);
  element("tip").hidden = true;
}

// --- the rest of the page

function wireButtons() {
  element("theme").onclick = () => setTheme(isDark() ? "light" : "dark", true);
  element("help").onclick = () => element("help-dialog").showModal();
  element("back").onclick = back;
  element("select").onclick = () => setSelecting(!isSelecting());
  element("previous").onclick = () => walk(-1);
  element("next").onclick = () => walk(1);
  element("map-home").onclick = () => map?.showAll();
  element("sky-home").onclick = () => sky?.showAll();
  for (const group of ["view", "projection"]) {
    for (const button of element(group).children) button.onclick = () => change({ [group]: button.dataset.value });
  }
  matchMedia("(prefers-color-scheme: dark)").onchange = (event) => {
    if (!localStorage.getItem("armillary-theme")) setTheme(event.matches ? "dark" : "light");
  };
  addEventListener("keydown", onKey);
}

const KEYS = {
  ArrowRight: () => walk(1),
  ArrowLeft: () => walk(-1),
  b: back,
  "/": () => element("search-box").focus(),
  "?": () => element("help-dialog").showModal(),
  t: () => element("theme").click(),
  m: (event) => markOf(event, "more"),
  l: (event) => markOf(event, "less"),
  r: () => marked("more").length && change({ ranked: state.ranked ? "" : "yes" }),
  s: () => map && setSelecting(!isSelecting()),
  v: () => change({ view: VIEWS[(VIEWS.indexOf(state.view) + 1) % VIEWS.length] }),
  p: () => change({ projection: state.projection === "pca" ? "umap" : "pca" }),
  c: () => {
    const names = [...element("colour").options].map((option) => option.value);
    change({ colour: names[(names.indexOf(element("colour").value) + 1) % names.length] });
  },
  0: () => {
    map?.showAll();
    sky?.showAll();
  },
  Escape: () => {
    if (isSelecting()) setSelecting(false);
    else if (!element("notice").hidden) element("notice").hidden = true;
    else change({ object: "" });
  },
};

/** Mark the object that has the focus in a list, else the one that is looked at. */
function markOf(event, kind) {
  const id = event.target.closest("[data-object]")?.dataset.object ?? state.object;
  if (id) mark([id], kind);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) || !server) return;
  const act = KEYS[event.key];
  if (!act || (!state.object && event.key.startsWith("Arrow"))) return;
  event.preventDefault();
  act(event);
}

function setTheme(theme, isChosen = false) {
  document.documentElement.dataset.theme = theme;
  if (isChosen) localStorage.setItem("armillary-theme", theme);
  panel?.redraw();
  if (colours) recolour().then(() => map.drawOverlay(), fail);
}

function fail(error) {
  const notice = element("notice");
  if (!(error instanceof Problem)) console.warn(error);
  notice.textContent = error.message;
  notice.hidden = false;
}

/** For tests: where an object is drawn, in pixels of the page. */
window.armillary = {
  screenPosition: (view, place) => {
    const at = { map, sky }[view].screenPosition(place);
    const box = element(view).getBoundingClientRect();
    return at && [box.left + at[0], box.top + at[1]];
  },
};
