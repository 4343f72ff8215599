// The last minutes, kept in the page, and lines of them.

import { setAttribute } from "./dom.js";

const KEPT_S = 300;
const LEAST_SPAN_S = 60; // at first, before there is more to show
const GAP_S = 5; // nothing is drawn over a time in which nothing was heard

export class History {
  #samples = [];

  /** Add a sample: an object with `at_s` and numbers. */
  add(sample) {
    this.#samples.push(sample);
    while (sample.at_s - this.#samples[0].at_s > KEPT_S) this.#samples.shift();
  }

  /** Draw values over time into an svg, one line for each function of a sample; `most` is the top of the scale. */
  draw(svg, label, values, most) {
    const samples = this.#samples, last = samples[samples.length - 1];
    const top = most || Math.max(1e-9, ...samples.flatMap((each) => values.map((value) => value(each) ?? 0)));
    setAttribute(svg, "viewBox", "0 0 300 40");
    setAttribute(svg, "preserveAspectRatio", "none");
    setAttribute(svg, "role", "img");
    const seconds = Math.round(last.at_s - samples[0].at_s), span_s = Math.max(seconds, LEAST_SPAN_S);
    setAttribute(svg, "aria-label", `${label} over the last ${seconds} s, at most ${+top.toPrecision(3)}`);
    if (!svg.firstChild) {
      svg.append(shape("line", { x1: 0, x2: 300, y1: 39.5, y2: 39.5 }), ...values.map(() => shape("path")));
    }
    values.forEach((value, index) => {
      let path = "", before;
      for (const sample of samples) {
        const number = value(sample);
        if (number === null) continue;
        const x = 300 - (last.at_s - sample.at_s) / span_s * 300, y = 38.5 - 36 * Math.min(1, number / top);
        path += `${before === undefined || sample.at_s - before > GAP_S ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
        before = sample.at_s;
      }
      setAttribute(svg.childNodes[index + 1], "d", path);
    });
  }
}

const shape = (tag, attributes = {}) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
};
