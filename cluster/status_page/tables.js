// The rows of the page's tables.

import { setRows } from "./dom.js";
import { bytes, clock, count, duration, milliseconds, ranges, short } from "./format.js";
import { byGroup, isCopy, rateOf } from "./heat_map.js";

const number = (text, title) => ({ text: String(text), kind: "n", title });
const ago = (now_s, at_s) => number(duration(now_s - at_s), new Date(at_s * 1000).toLocaleString());
const body = (id) => document.querySelector(`#${id} .list tbody`);

/** By expert replica, the routers that pass it over now. */
export const passedOver = (routers) => {
  const found = new Map();
  for (const router of routers) {
    for (const replica_id of router.dispatches?.ejected ?? []) {
      found.set(replica_id, [...(found.get(replica_id) ?? []), router.replica_id]);
    }
  }
  return found;
};

export const showRouters = (routers, rates) => setRows(body("routers"), routers.map((router) => {
  const sent = router.dispatches, rate = rates.of(router);
  const told = (key) => number(sent ? count(sent[key]) : "-");
  const over = sent?.ejected.join(", ");
  return [
    { text: router.replica_id, title: router.replica_id },
    number(`${router.running} / ${router.slots}`),
    number(router.waiting),
    number(count(router.queued_prompt_tokens)),
    {
      text: `${bytes(router.kv_used_bytes)} of ${bytes(router.kv_total_bytes)}`,
      part: router.kv_total_bytes ? router.kv_used_bytes / router.kv_total_bytes : 0,
    },
    number(rate === undefined ? "-" : short(rate)),
    told("shares"), told("hedges"), told("resends"), told("ejections"),
    over ? { text: over, kind: "warn", title: over } : { text: "nobody", kind: "soft" },
    number(router.pid || "-"),
  ];
}), "none runs: the first request starts one");

export const showExperts = (replicas, passed, now_s, empty) => {
  setRows(body("experts"), byGroup(replicas).map((replica) => expertCells(replica, passed, now_s)), empty);
};

const expertCells = (replica, passed, now_s) => {
  const routers = passed.get(replica.replica_id);
  const copies = replica.expert_ids.filter((expert) => isCopy(replica, expert));
  const home = ranges(replica.expert_ids.filter((expert) => !isCopy(replica, expert)));
  const held = copies.length ? `${home}, ${copies.length > 1 ? "copies" : "copy"} of ${ranges(copies)}` : home;
  return [
    { text: replica.replica_id, title: replica.replica_id },
    routers
      ? { text: "▲ passed over", kind: "warn", title: `by ${routers.join(", ")}` }
      : { text: "● serving", kind: "good" },
    { text: replica.group, title: replica.group },
    { text: held, title: held },
    number(short(replica.expert_ids.reduce((sum, expert) => sum + rateOf(replica, expert), 0))),
    number(milliseconds(replica.queue_s)),
    number(milliseconds(replica.compute_s)),
    number(bytes(replica.weight_bytes)),
    number(bytes(replica.spare_bytes)),
    replica.registered_at_s === null ? number("-") : ago(now_s, replica.registered_at_s),
    { text: replica.host || "-", title: replica.host },
    replica.address,
    number(replica.pid),
  ];
};

export const showEvents = (events, now_s) => setRows(body("events"), [...events].reverse().map((event) => [
  clock(event.at_s * 1000),
  ago(now_s, event.at_s),
  { text: event.subject, title: event.subject },
  event.text,
]), "none yet");
