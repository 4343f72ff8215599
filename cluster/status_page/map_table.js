// What both heat maps are made of: a table with a column per logical expert.

import { make } from "./dom.js";

const MOST_WITH_NUMBERS = 32; // more columns than that leave no room for a number
const LABEL_EVERY = 8;

/** Empty a table and give it columns for so many experts. */
export const prepare = (table, numExperts) => {
  table.className = numExperts > MOST_WITH_NUMBERS ? "heat dense" : "heat";
  table.style.setProperty("--columns", numExperts);
  const columns = make("colgroup");
  for (let index = 0; index <= numExperts; index += 1) columns.append(make("col"));
  table.replaceChildren(columns);
};

/** Whether there are so many columns that cells are without numbers. */
export const isDense = (table) => table.classList.contains("dense");

/** How far up the scale a rate is, 0 to 1: by its root, or one hot expert would leave all others alike. */
export const heatOf = (rate, most) => Math.sqrt(rate / most);

/** How many copies, where there is room for one character: a dot where there are no more than of any other expert. */
export const copiesSign = (copies, isMore) => isMore ? (copies > 9 ? "+" : String(copies)) : "·";

export const head = (experts, dense) => {
  const found = make("thead"), row = make("tr");
  row.append(make("td"), ...experts.map((expert) => {
    return scoped("col", !dense || expert % LABEL_EVERY === 0 ? String(expert) : "");
  }));
  found.append(row);
  return found;
};

export const body = (rows) => {
  const found = make("tbody");
  found.append(...rows);
  return found;
};

export const line = (label, boxes) => {
  const row = make("tr");
  row.append(scoped("row", label), ...boxes);
  return row;
};

export const scoped = (scope, text) => {
  const box = make("th", "", text);
  box.scope = scope;
  return box;
};
