// The selected objects: how many, a list, a file of them, and their ids for elsewhere.

import { MOST_MARKS } from "./marks.js";
import { objectButton } from "./object_button.js";
import { isSimulated } from "./simulated.js";
import { change, packed, state, unpacked } from "./state.js";

const MOST_IN_ADDRESS = 40;
const MOST_LISTED = 60;
const MOST_AT_ONCE = 500; // objects of one request
const element = (id) => document.getElementById(id);

export class Selection {
  /**
   * `pointsOf(query)` asks the server who objects are, `label()` is the one that is looked at, "" for none,
   * `choose(id)` shows one, `mark(ids)` marks them, `changed()` is called after each change, `fail(error)` on errors.
   */
  constructor({ pointsOf, label, choose, mark, changed, fail }) {
    Object.assign(this, { pointsOf, label, choose, changed });
    this.numbers = [];
    this.told = ""; // what the address was made to say
    const act = (id, work) => (element(id).onclick = () => work().catch(fail));
    act("selection-csv", async () => save("selection.csv", await this.csv()));
    act("selection-copy", async () => this.copy());
    act("selection-more", async () => mark(await this.ids()));
    act("selection-clear", async () => this.set([]));
  }

  /** Select the objects of these ids; those that are not there are left out. */
  async setIds(ids) {
    const { points } = ids.length ? await this.pointsOf(ids.map((id) => ["object_id", id])) : { points: [] };
    await this.set(points.map((point) => point.number).filter((number) => number !== null));
  }

  /** Select the objects of these numbers, in this order. A small selection is held in the address. */
  async set(numbers) {
    this.numbers = [...new Set(numbers)];
    const mine = this.numbers;
    element("selection").hidden = !mine.length;
    element("selection-title").textContent = `Selected: ${mine.length.toLocaleString("en")}`;
    element("selection-more").disabled = mine.length > MOST_MARKS;
    element("selection-note").textContent = mine.length > MOST_LISTED ? `The first ${MOST_LISTED}; the file holds all.` : "";
    this.changed();
    const first = await this.ids(MOST_LISTED);
    if (mine !== this.numbers) return; // another was made meanwhile
    element("selection-list").replaceChildren(...first.map((id) => this.item(id)));
    this.told = mine.length <= MOST_IN_ADDRESS ? packed(first) : "";
    change({ selected: this.told });
  }

  /** Select what the address says, where that is another selection. */
  async follow() {
    if (state.selected !== this.told) await this.setIds(unpacked(state.selected));
  }

  item(id) {
    const item = document.createElement("li");
    item.append(objectButton(id, this.choose));
    return item;
  }

  async ids(most = Infinity) {
    return (await this.rows([], most)).map((row) => row.object_id);
  }

  /** Id and `columns` of the first `most` objects. */
  async rows(columns, most = Infinity) {
    const found = [];
    const count = Math.min(most, this.numbers.length);
    for (let start = 0; start < count; start += MOST_AT_ONCE) {
      const asked = this.numbers.slice(start, Math.min(count, start + MOST_AT_ONCE));
      const { points } = await this.pointsOf([...asked.map((number) => ["number", number]), ["columns", columns.join(",")]]);
      found.push(...points);
    }
    return found;
  }

  /** Id, position in degrees and the label that is looked at, and whether the object is simulated. */
  async csv() {
    const label = this.label();
    const columns = ["ra", "dec", ...(label ? [label] : [])];
    const lines = (await this.rows(columns)).map((row) => [
      cell(row.object_id),
      ...columns.map((name) => decimal(row[name], name === label)),
      isSimulated(row.object_id) ?? "",
    ]);
    return [["object_id", ...columns, "is_simulated"], ...lines].map((line) => `${line.join(",")}\r\n`).join("");
  }

  async copy() {
    await navigator.clipboard.writeText((await this.ids()).join("\n"));
    element("selection-note").textContent = `${this.numbers.length.toLocaleString("en")} ids are on the clipboard.`;
  }
}

/** As RFC 4180 has it; as in the server's CSV, an apostrophe stands before what a spreadsheet would compute. */
export function cell(text) {
  const told = /^(?:[\s']*[=+\-@\uff1d\uff0b\uff0d\uff20]|['\t\r\n])/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(told) ? `"${told.replaceAll('"', '""')}"` : told;
}

/** Labels are float32: seven digits are all there are. */
const decimal = (value, isLabel) => (value === null ? "" : isLabel ? Number(value.toPrecision(7)) : value);

function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
