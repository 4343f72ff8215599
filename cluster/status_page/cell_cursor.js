// The words of one cell of a map, below it: of the cell that is pointed at, touched, or reached with the arrow keys.

import { put } from "./dom.js";

const HINT = "point at a cell, or use the arrow keys, for its numbers";
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

export class CellCursor {
  #at = null;

  /** `wordsOf` tells what a td shows; nothing for one that shows nothing. */
  constructor(table, output, wordsOf) {
    Object.assign(this, { table, output, wordsOf });
    // A finger has no tooltip, and neither has a keyboard.
    for (const kind of ["pointerover", "click"]) table.addEventListener(kind, ({ target }) => this.#go(target));
    table.parentNode.addEventListener("keydown", (press) => {
      const step = STEPS[press.key];
      if (!step || press.ctrlKey || press.altKey || press.metaKey) return;
      press.preventDefault();
      this.#step(...step);
    });
  }

  /** Forget the cell: the table was built anew. */
  reset() {
    this.#at = null;
    put(this.output, HINT);
  }

  /** Show the cell's newest words. */
  refresh() {
    put(this.output, this.#at ? this.wordsOf(this.#at) : HINT);
  }

  #go(box) {
    if (box.tagName !== "TD" || !this.wordsOf(box)) return;
    this.#at?.classList.remove("at");
    this.#at = box;
    box.classList.add("at");
    box.title = this.wordsOf(box);
    this.refresh();
  }

  /** Go to the next cell with words in a direction, over those without; the first time to the first one. */
  #step(down, right) {
    const rows = [...this.table.rows];
    if (!this.#at) return this.#go(this.table.querySelector("td.held") ?? this.table);
    let row = rows.indexOf(this.#at.parentNode), column = this.#at.cellIndex;
    do {
      row += down;
      column += right;
      const box = rows[row]?.cells[column];
      if (box?.tagName === "TD" && this.wordsOf(box)) {
        this.#go(box);
        return box.scrollIntoView({ block: "nearest", inline: "nearest" });
      }
    } while (row >= 0 && row < rows.length && column > 0 && column < this.table.rows[0].cells.length);
  }
}
