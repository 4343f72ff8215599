// Puts things into the page as text, never as HTML: names come from the cluster.

export const byId = (id) => document.getElementById(id);

/** Set a text; touches nothing when it is there already, so that a selection survives the next answer. */
export const put = (node, text) => {
  if (node.textContent !== text) node.textContent = text;
};

export const setAttribute = (node, name, text) => {
  if (node.getAttribute(name) !== text) node.setAttribute(name, text);
};

export const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};

/** A cell is a text, or {text, title, kind, part}: a class, and how much of a bar before the text is full, 0 to 1. */
const setCell = (box, cell) => {
  const { text, title = "", kind = "", part } = typeof cell === "object" ? cell : { text: String(cell) };
  if (box.className !== kind) box.className = kind;
  if (box.title !== title) box.title = title;
  if (part === undefined) return put(box, text);
  if (!box.querySelector(".bar")) {
    const bar = make("span", "bar");
    bar.append(make("i"));
    box.replaceChildren(bar, make("span"));
  }
  box.querySelector("i").style.width = `${100 * Math.min(1, part)}%`;
  put(box.lastChild, text);
};

/** Make a table's body show these rows of cells; `empty` where there is none. */
export const setRows = (body, rows, empty) => {
  const columns = body.parentNode.tHead.rows[0].cells.length;
  const shown = rows.length ? rows : [[{ text: empty, kind: "empty" }]];
  while (body.rows.length > shown.length) body.deleteRow(-1);
  shown.forEach((cells, index) => {
    const line = body.rows[index] || body.insertRow();
    while (line.cells.length > cells.length) line.deleteCell(-1);
    while (line.cells.length < cells.length) line.insertCell();
    cells.forEach((cell, column) => setCell(line.cells[column], cell));
    line.cells[0].colSpan = rows.length ? 1 : columns;
  });
};
