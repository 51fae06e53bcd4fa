// The collection ranked by what is marked, and the marks themselves as a list.

import { post } from "./api.js";
import { offerProbe } from "./mark_probe.js";
import { KINDS, mark, marked } from "./marks.js";
import { tiles } from "./neighbours.js";
import { objectButton } from "./object_button.js";
import { change, state } from "./state.js";

const COUNT = 50;
const element = (id) => document.getElementById(id);

export class Ranking {
  /** `server` as of the page, `choose(id)` shows an object, `select(ids)` selects some, `changed()` after each change. */
  constructor(server, { choose, select, changed, fail }) {
    Object.assign(this, { server, choose, changed, fail });
    this.ids = [];
    this.abort = new AbortController();
    element("rank").onclick = () => change({ ranked: state.ranked ? "" : "yes" });
    element("marks-clear").onclick = () => change({ more: "", less: "", ranked: "" });
    element("ranking-select").onclick = () => select(this.ids);
  }

  /** Show the marks, and the ranking where it is asked for. */
  async show() {
    this.abort.abort();
    this.abort = new AbortController();
    const [more, less] = KINDS.map(marked);
    const hadFocus = element("marks").contains(document.activeElement);
    element("marks").hidden = !more.length && !less.length;
    for (const kind of KINDS) element(`marks-${kind}`).replaceChildren(...marked(kind).map((id) => this.chip(id, kind)));
    for (const button of document.querySelectorAll("[data-mark]")) {
      button.setAttribute("aria-pressed", String(marked(button.dataset.mark).includes(button.dataset.of)));
    }
    const isRanked = Boolean(state.ranked && more.length);
    element("rank").disabled = !more.length;
    element("rank").setAttribute("aria-pressed", String(isRanked));
    element("ranking").hidden = !isRanked;
    offerProbe(this.fail);
    this.ids = [];
    this.changed();
    // What had the focus may be gone with its mark.
    if (hadFocus && !element("marks").contains(document.activeElement)) element(more.length ? "rank" : "panel").focus();
    if (!isRanked) return;
    try {
      await this.rank(more, less, this.abort.signal);
    } catch (error) {
      if (error.name !== "AbortError") this.fail(error);
    }
  }

  async rank(positive, negative, signal) {
    const { collection, imageModality } = this.server;
    const body = { positive, ...(negative.length && { negative }), k: COUNT, include: ["labels"], ...(imageModality && { target_modality: imageModality }) };
    const { neighbours } = await post(`/v1/collections/${encodeURIComponent(collection.name)}/search`, body, { signal });
    element("ranking-list").replaceChildren(...tiles(neighbours, imageModality, this.choose, "How well it fits the marks"));
    this.ids = [...new Set(neighbours.map((one) => one.object_id))];
    this.changed();
  }

  /** A marked object, which a click shows, and the button that takes its mark away. */
  chip(id, kind) {
    const chip = document.createElement("li");
    const off = Object.assign(document.createElement("button"), { type: "button", textContent: "×" });
    off.setAttribute("aria-label", `${id}: no longer ${kind} like this`);
    off.onclick = () => mark([id], kind);
    chip.append(objectButton(id, this.choose), off);
    return chip;
  }
}
