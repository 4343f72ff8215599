// Which expert is how busy in which layer, all its copies together: a row per MoE layer, a column per logical expert.

import { CellCursor } from "./cell_cursor.js";
import { byId, put, setAttribute } from "./dom.js";
import { roundUp, short } from "./format.js";
import { body, copiesSign, head, heatOf, isDense, line, prepare } from "./map_table.js";

export class LayerMap {
  #table = byId("layer-heat");
  #cursor = new CellCursor(this.#table, byId("heat-cell"), (box) => this.#words(box));
  #shape = "";
  #cells = []; // a row of boxes per layer
  #counts = [];
  #layers = [];
  #copies = [];

  /** Show layers, each with its tokens/s by expert; `copies` is how many replicas hold each expert. */
  show(layers, copies) {
    const shape = JSON.stringify([copies.length, layers.map(({ layer }) => layer)]);
    if (shape !== this.#shape) this.#build(layers, copies.length);
    this.#shape = shape;
    this.#layers = layers;
    this.#copies = copies;
    const most = roundUp(Math.max(...layers.flatMap((each) => each.tokens_per_s)));
    this.#cells.forEach((boxes, row) => boxes.forEach((box, expert) => {
      this.#setCell(box, layers[row].tokens_per_s[expert], most);
    }));
    const least = Math.min(...copies);
    this.#counts.forEach((box, expert) => {
      const isMore = copies[expert] > least;
      box.classList.toggle("more", isMore);
      put(box, isDense(this.#table) ? copiesSign(copies[expert], isMore) : String(copies[expert]));
      setAttribute(box, "aria-label", `${copies[expert]} copies`);
    });
    this.#cursor.refresh();
    return most;
  }

  /** There may be thousands: a cell whose look and number stay is not touched, and words are made when asked for. */
  #setCell(box, rate, most) {
    const look = `${heatOf(rate, most).toFixed(2)} ${short(rate)}`;
    if (box.dataset.look === look) return;
    box.dataset.look = look;
    box.style.setProperty("--heat", heatOf(rate, most).toFixed(2));
    if (isDense(this.#table)) setAttribute(box, "aria-label", `${short(rate)} tokens/s`);
    else put(box, short(rate));
  }

  #words(box) {
    const expert = box.cellIndex - 1, held = `${this.#copies[expert]} ${this.#copies[expert] === 1 ? "copy" : "copies"}`;
    if (box.classList.contains("count")) return `expert ${expert}: ${held}`;
    const row = this.#layers[box.parentNode.dataset.row];
    return row ? `layer ${row.layer}, expert ${expert}: ${short(row.tokens_per_s[expert])} tokens/s, ${held}` : "";
  }

  #build(layers, numExperts) {
    prepare(this.#table, numExperts);
    const experts = [...Array(numExperts).keys()];
    const boxes = (className) => experts.map(() => Object.assign(document.createElement("td"), { className }));
    this.#counts = boxes("count");
    this.#cells = layers.map(() => boxes("held"));
    const rows = layers.map(({ layer }, index) => {
      const found = line(`layer ${layer}`, this.#cells[index]);
      found.dataset.row = index;
      return found;
    });
    this.#table.append(head(experts, isDense(this.#table)), body([line("copies", this.#counts)]), body(rows));
    this.#cursor.reset();
  }
}
