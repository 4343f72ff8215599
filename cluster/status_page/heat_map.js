// Which expert is how busy where: a row per expert replica, a column per logical expert.

import { CellCursor } from "./cell_cursor.js";
import { byId, make, put, setAttribute } from "./dom.js";
import { roundUp, short } from "./format.js";
import { body, copiesSign, head, heatOf, isDense, line, prepare, scoped } from "./map_table.js";

export class HeatMap {
  #table = byId("heat");
  #cursor = new CellCursor(this.#table, byId("heat-cell"), (box) => box.title);
  #shape = "";
  #cells = []; // {box, row, expert}; row is undefined for all copies together
  #copiesLabel = null;

  /** Show replicas in the order given, those of a group side by side; return the top of the scale. */
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
    const least = Math.min(...copies);
    put(this.#copiesLabel, isDense(this.#table) ? `copies (· is ${least})` : "copies");
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
    this.#cursor.refresh();
    return most;
  }

  #setCell(box, rate, most, words, row, expert) {
    const copy = row && isCopy(row, expert) ? ", a copy beyond its group" : "";
    const title = `${words}: ${short(rate)} tokens/s${copy}`;
    if (box.title === title && box.dataset.most === String(most)) return;
    box.dataset.most = most;
    box.title = title;
    setAttribute(box, "aria-label", title);
    box.style.setProperty("--heat", heatOf(rate, most).toFixed(3));
    if (!isDense(this.#table)) put(box, short(rate));
  }

  #setCount(box, expert, copies, isMore) {
    const title = `expert ${expert}: ${copies} ${copies === 1 ? "replica holds" : "replicas hold"} it`;
    if (box.title === title) return;
    box.title = title;
    setAttribute(box, "aria-label", title);
    box.classList.toggle("more", isMore);
    put(box, isDense(this.#table) ? copiesSign(copies, isMore) : String(copies));
  }

  #build(numExperts, rows) {
    prepare(this.#table, numExperts);
    this.#cells = [];
    const experts = [...Array(numExperts).keys()];
    const copies = line("copies", experts.map((expert) => this.#cell("count", { expert, kind: "count" })));
    this.#copiesLabel = copies.firstChild;
    const bodies = [body([line("all copies", experts.map((expert) => this.#cell("held", { expert }))), copies])];
    rows.forEach((row, index) => {
      if (row.group !== rows[index - 1]?.group) bodies.push(groupBody(row.group));
      const held = new Set(row.expert_ids);
      const found = line("", experts.map((expert) => {
        if (!held.has(expert)) return make("td", "none");
        return this.#cell(isCopy(row, expert) ? "held copy" : "held", { row: index, expert });
      }));
      found.dataset.row = index;
      bodies[bodies.length - 1].append(found);
    });
    this.#table.append(head(experts, isDense(this.#table)), ...bodies);
    this.#cursor.reset();
  }

  #cell(className, place) {
    const box = make("td", className);
    this.#cells.push({ box, ...place });
    return box;
  }
}

/** Tell whether a replica holds an expert beyond those of its group. */
export const isCopy = (row, expert) => row.home_ids.length > 0 && !row.home_ids.includes(expert);

export const rateOf = (row, expert) => row.tokens_per_s[expert] ?? 0;

/** Return replicas in the order of their groups' first experts. */
export const byGroup = (replicas) => {
  const first = (row) => Math.min(...(row.home_ids.length ? row.home_ids : row.expert_ids));
  const order = (a, b) => first(a) - first(b) || compare(a.group, b.group) || compare(a.replica_id, b.replica_id);
  return [...replicas].sort(order);
};

const compare = (a, b) => a < b ? -1 : a > b ? 1 : 0;

const groupBody = (group) => {
  const row = make("tr");
  row.append(scoped("rowgroup", `group ${group}`));
  return body([row]);
};
