// Tokens per second of each router, from its count of two answers.

export class Rates {
  #before = new Map();
  #at_s = null;
  #rates = new Map();

  /** Take an answer's routers and when they answered; the same answer again changes nothing. */
  take(routers, at_s) {
    if (at_s === this.#at_s) return;
    const passed_s = at_s - this.#at_s, before = this.#before;
    this.#rates = new Map();
    for (const router of routers) {
      // A router that restarted counts from zero again: no rate is better than a negative one.
      const more = router.generated_tokens - before.get(router.replica_id);
      if (this.#at_s !== null && passed_s > 0 && more >= 0) this.#rates.set(router.replica_id, more / passed_s);
    }
    this.#before = new Map(routers.map((router) => [router.replica_id, router.generated_tokens]));
    this.#at_s = at_s;
  }

  /** A router's rate, undefined while it is not known. */
  of(router) {
    return this.#rates.get(router.replica_id);
  }

  /** All together, null while none is known. */
  total() {
    return this.#rates.size ? [...this.#rates.values()].reduce((sum, rate) => sum + rate, 0) : null;
  }
}
