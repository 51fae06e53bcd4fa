// Pictures of objects, few at a time, kept for a while: walking back and forth asks for nothing twice.

import { blobUrl, downloads, fileOf } from "./api.js";

const MOST_KEPT = 400;
const MOST_AT_ONCE = 6;
const kept = new Map();
const queue = [];
let running = 0;

/** An <img> of an object in a survey, filled in when the picture is there; without one it tells why. */
export function picture(objectId, modality, size, alt, isUrgent = false) {
  const image = document.createElement("img");
  image.alt = alt;
  image.width = image.height = size;
  image.decoding = "async";
  image.dataset.state = "loading";
  const pixels = Math.round(size * Math.min(2, devicePixelRatio || 1));
  load(fileOf(objectId, "image.jpg", { modality, size: pixels }), isUrgent).then(
    (url) => {
      image.onload = () => (image.dataset.state = "there");
      image.src = url;
    },
    (error) => {
      image.dataset.state = "none";
      image.alt = `${alt}: ${error.message}`;
    },
  );
  return image;
}

/** The images of an object, one figure for each survey, each with its file. */
export function figures(objectId, modalities) {
  return modalities.map((modality) => {
    const survey = modality.split("/")[1];
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const file = document.createElement("a");
    file.textContent = "FITS";
    file.className = "file";
    file.setAttribute("aria-label", `FITS file of ${survey}`);
    downloads(file, fileOf(objectId, "image.fits", { modality }), `${objectId}-${modality.replace("/", "-")}.fits`);
    caption.append(survey, " ", file);
    figure.append(picture(objectId, modality, 210, `${objectId} in ${survey}`, true), caption);
    return figure;
  });
}

function load(path, isUrgent) {
  if (kept.has(path)) {
    const url = kept.get(path);
    kept.delete(path);
    kept.set(path, url); // the latest used is the last
    return url;
  }
  const url = new Promise((resolve, reject) => queue[isUrgent ? "unshift" : "push"]({ path, resolve, reject }));
  kept.set(path, url);
  url.catch(() => kept.delete(path));
  if (kept.size > MOST_KEPT) {
    const [oldest, its] = kept.entries().next().value;
    kept.delete(oldest);
    its.then((made) => URL.revokeObjectURL(made), () => {});
  }
  next();
  return url;
}

function next() {
  while (running < MOST_AT_ONCE && queue.length) {
    const { path, resolve, reject } = queue.shift();
    running++;
    blobUrl(path)
      .then(resolve, reject)
      .finally(() => {
        running--;
        next();
      });
  }
}
