// What is old says so: a part of the page that nothing newer came for is greyed, with since when and why.

import { byId, put } from "./dom.js";
import { clock } from "./format.js";

export class Part {
  #heardAt = null;

  constructor(...ids) {
    this.sections = ids.map(byId);
  }

  /** Take note that this part was heard of now. */
  heard() {
    this.#heardAt = Date.now();
    for (const section of this.sections) section.classList.remove("stale");
    this.#say("");
  }

  /** Take note of why nothing was heard. */
  missed(why) {
    for (const section of this.sections) section.classList.add("stale");
    this.#say(`${this.since()}: ${why}`);
  }

  /** Since when nothing has been heard, in words that stay: a screen reader says them whenever they change. */
  since() {
    if (this.#heardAt === null) return "nothing heard yet";
    return `nothing newer since ${clock(this.#heardAt)}`;
  }

  #say(text) {
    for (const section of this.sections) {
      const why = section.querySelector(".why");
      if (why) put(why, text);
    }
  }
}
