// The box that finds an object by the beginning of its id, or by a position: `150.1 2.2`, or `150.1 2.2 0.5` (degrees).

import { get } from "./api.js";
import { simulatedTag } from "./simulated.js";

const RADIUS_DEG = 0.1;
const MOST = 8;
const WAIT_MS = 150;

/** `choose(id)` is called with the object that was found, `fail(error)` where none was. */
export function searchBox(collection, choose, fail) {
  const form = document.getElementById("search");
  const box = document.getElementById("search-box");
  const list = document.getElementById("search-list");
  let [found, chosen, timer, asked] = [[], -1, 0, 0];

  const close = () => {
    list.hidden = true;
    chosen = -1;
    box.setAttribute("aria-expanded", "false");
    box.removeAttribute("aria-activedescendant");
  };
  const take = (id) => {
    clearTimeout(timer);
    asked++;
    close();
    box.value = "";
    box.blur();
    choose(id);
  };
  const show = () => {
    list.replaceChildren(
      ...found.map((one, i) => {
        const item = document.createElement("li");
        item.id = `found-${i}`;
        item.role = "option";
        item.append(one.id, ...simulatedTag(one.id));
        item.setAttribute("aria-selected", String(i === chosen));
        if (one.note) {
          const note = document.createElement("span");
          note.className = "note";
          note.textContent = one.note;
          item.append(note);
        }
        // Before the box loses the focus, and with it the list.
        item.onpointerdown = (event) => {
          event.preventDefault();
          take(one.id);
        };
        return item;
      }),
    );
    list.hidden = !found.length;
    box.setAttribute("aria-expanded", String(found.length > 0));
    if (chosen >= 0) box.setAttribute("aria-activedescendant", `found-${chosen}`);
  };
  const look = async (text) => {
    const place = position(text);
    if (place) {
      const { objects } = await get(`/v1/objects?${new URLSearchParams({ ...place, limit: MOST })}`);
      return objects.map((one) => ({ id: one.object_id, note: separation(one.separation_deg) }));
    }
    const query = new URLSearchParams({ prefix: text, limit: MOST });
    const { points } = await get(`/v1/collections/${encodeURIComponent(collection.name)}/map/points?${query}`);
    return points.map((one) => ({ id: one.object_id }));
  };

  box.oninput = () => {
    clearTimeout(timer);
    const text = box.value.trim();
    const mine = ++asked;
    if (!text) {
      found = [];
      return close();
    }
    timer = setTimeout(async () => {
      const now = await look(text).catch(() => []);
      if (mine !== asked) return;
      found = now;
      chosen = -1;
      show();
    }, WAIT_MS);
  };
  box.onkeydown = (event) => {
    if (event.key === "Escape") {
      close();
      box.blur();
    }
    if (!found.length || !["ArrowDown", "ArrowUp"].includes(event.key)) return;
    event.preventDefault();
    chosen = (chosen + (event.key === "ArrowDown" ? 1 : -1) + found.length) % found.length;
    show();
  };
  box.onblur = close;
  form.onsubmit = async (event) => {
    event.preventDefault();
    const text = box.value.trim();
    if (!text) return;
    clearTimeout(timer);
    const mine = ++asked;
    if (chosen >= 0 && found[chosen]) return take(found[chosen].id);
    try {
      const now = await look(text);
      if (mine !== asked) return;
      if (now.length) take(now[0].id);
      else fail(new Error(position(text) ? `No object within ${position(text).radius_deg}° of ${text}.` : `No object whose id begins with ${text}.`));
    } catch (error) {
      // A server with too many objects for lists knows an id all the same.
      if (error.status === 404 && !position(text)) take(text);
      else fail(error);
    }
  };
}

/** Degrees from what was typed; null if it is no position. */
export function position(text) {
  const numbers = text.split(/[\s,]+/);
  if (numbers.length < 2 || numbers.length > 3 || !numbers.every((one) => /^[+-]?\d+(\.\d*)?$/.test(one))) return null;
  const [ra, dec, radius_deg = RADIUS_DEG] = numbers.map(Number);
  return ra >= 0 && ra < 360 && Math.abs(dec) <= 90 && radius_deg > 0 && radius_deg <= 180 ? { ra, dec, radius_deg } : null;
}

const separation = (degrees) => (degrees < 1 / 60 ? `${(3600 * degrees).toFixed(1)}″` : degrees < 1 ? `${(60 * degrees).toFixed(1)}′` : `${degrees.toFixed(2)}°`);
