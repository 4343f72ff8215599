// Which expert is how busy where: a row per expert replica, a column per logical expert.

import { byId, make, put, setAttribute } from "./dom.js";
import { roundUp, short } from "./format.js";

const MOST_WITH_NUMBERS = 32; // more columns than that leave no room for a number
const LABEL_EVERY = 8;

export class HeatMap {
  #table = byId("heat");
  #output = byId("heat-cell");
  #shape = "";
  #cells = []; // {box, row, expert}; row is undefined for all copies together
  #at = null;
  #copiesLabel = null;

  constructor() {
    // A finger has no tooltip: the cell's words are shown below as well.
    const point = (event) => this.#point(event.target);
    for (const kind of ["pointerover", "click"]) this.#table.addEventListener(kind, point);
  }

  /** Show replicas in the order given, those of a group side by side. */
  show(numExperts, replicas, passedOver) {
    const rows = byGroup(replicas);
    const parts = rows.map((row) => [row.replica_id, row.group, row.expert_ids, row.home_ids]);
    const shape = JSON.stringify([numExperts, parts]);
    if (shape !== this.#shape) this.#build(numExperts, rows);
    this.#shape = shape;
    const total = Array(numExperts).fill(0), copies = Array(numExperts).fill(0);
    for (const row of rows) {
      for (const expert of row.expert_ids) {
        total[expert] += rateOf(row, expert);
        copies[expert] += 1;
      }
    }
    const most = roundUp(Math.max(...total));
    put(byId("heat-middle"), short(most / 4));
    put(byId("heat-most"), short(most));
    const least = Math.min(...copies);
    put(this.#copiesLabel, this.#isDense() ? `copies (· is ${least})` : "copies");
    for (const { box, row, expert, kind } of this.#cells) {
      const found = row === undefined ? undefined : rows[row];
      if (kind === "count") this.#setCount(box, expert, copies[expert], copies[expert] > least);
      else if (found) {
        this.#setCell(box, rateOf(found, expert), most, `expert ${expert} at ${found.replica_id}`, found, expert);
      }
      else this.#setCell(box, total[expert], most, `expert ${expert}, ${copies[expert]} copies together`);
    }
    for (const line of this.#table.querySelectorAll("tr[data-row]")) {
      const row = rows[line.dataset.row], isPassedOver = passedOver.has(row.replica_id);
      line.firstChild.className = isPassedOver ? "warn" : "";
      put(line.firstChild, isPassedOver ? `▲ ${row.replica_id}` : row.replica_id);
      const note = isPassedOver ? `, passed over by ${passedOver.get(row.replica_id).join(", ")}` : "";
      setAttribute(line.firstChild, "title", `${row.replica_id} of ${row.group} on ${row.host || row.address}${note}`);
    }
    if (this.#at) put(this.#output, this.#at.title);
  }

  #setCell(box, rate, most, words, row, expert) {
    const copy = row && isCopy(row, expert) ? ", a copy beyond its group" : "";
    const title = `${words}: ${short(rate)} tokens/s${copy}`;
    if (box.title === title && box.dataset.most === String(most)) return;
    box.dataset.most = most;
    box.title = title;
    setAttribute(box, "aria-label", title);
    box.style.setProperty("--heat", heatOf(rate, most).toFixed(3));
    if (!this.#isDense()) put(box, short(rate));
  }

  #setCount(box, expert, copies, isMore) {
    const title = `expert ${expert}: ${copies} ${copies === 1 ? "replica holds" : "replicas hold"} it`;
    if (box.title === title) return;
    box.title = title;
    setAttribute(box, "aria-label", title);
    box.classList.toggle("more", isMore);
    const digit = isMore ? (copies > 9 ? "+" : String(copies)) : "·";
    put(box, this.#isDense() ? digit : String(copies));
  }

  #isDense() {
    return this.#table.classList.contains("dense");
  }

  #point(box) {
    if (!box.matches("td[title]")) return;
    if (this.#at) this.#at.classList.remove("at");
    this.#at = box;
    box.classList.add("at");
    put(this.#output, box.title);
  }

  #build(numExperts, rows) {
    const table = this.#table;
    table.className = numExperts > MOST_WITH_NUMBERS ? "dense" : "";
    table.style.setProperty("--columns", numExperts);
    this.#cells = [];
    this.#at = null;
    put(this.#output, "point at a cell for its numbers");
    const columns = make("colgroup");
    for (let index = 0; index <= numExperts; index += 1) columns.append(make("col"));
    const experts = [...Array(numExperts).keys()];
    const head = make("thead"), line = make("tr");
    line.append(make("td"), ...experts.map((expert) => {
      const isNamed = !this.#isDense() || expert % LABEL_EVERY === 0;
      return scoped("col", isNamed ? String(expert) : "");
    }));
    head.append(line);
    const together = make("tbody");
    const copies = this.#line("copies", experts, (expert) => this.#cell("count", { expert, kind: "count" }));
    together.append(this.#line("all copies", experts, (expert) => this.#cell("held", { expert })), copies);
    this.#copiesLabel = copies.firstChild;
    const bodies = [together];
    rows.forEach((row, index) => {
      if (row.group !== rows[index - 1]?.group) bodies.push(groupBody(row.group));
      const held = new Set(row.expert_ids);
      const line = this.#line("", experts, (expert) => {
        if (!held.has(expert)) return make("td", "none");
        return this.#cell(isCopy(row, expert) ? "held copy" : "held", { row: index, expert });
      });
      line.dataset.row = index;
      bodies[bodies.length - 1].append(line);
    });
    table.replaceChildren(columns, head, ...bodies);
  }

  #line(label, experts, cell) {
    const line = make("tr");
    line.append(scoped("row", label), ...experts.map(cell));
    return line;
  }

  #cell(className, place) {
    const box = make("td", className);
    this.#cells.push({ box, ...place });
    return box;
  }
}

/** Tell whether a replica holds an expert beyond those of its group. */
export const isCopy = (row, expert) => row.home_ids.length > 0 && !row.home_ids.includes(expert);

/** How far up the scale a rate is, 0 to 1: by its root, or one hot expert would leave all others alike. */
const heatOf = (rate, most) => Math.sqrt(rate / most);

export const rateOf = (row, expert) => row.tokens_per_s[expert] ?? 0;

/** Return replicas in the order of their groups' first experts. */
export const byGroup = (replicas) => {
  const first = (row) => Math.min(...(row.home_ids.length ? row.home_ids : row.expert_ids));
  const order = (a, b) => first(a) - first(b) || compare(a.group, b.group) || compare(a.replica_id, b.replica_id);
  return [...replicas].sort(order);
};

const compare = (a, b) => a < b ? -1 : a > b ? 1 : 0;

const scoped = (scope, text) => {
  const box = make("th", "", text);
  box.scope = scope;
  return box;
};

const groupBody = (group) => {
  const body = make("tbody"), line = make("tr");
  line.append(scoped("rowgroup", `group ${group}`));
  body.append(line);
  return body;
};
