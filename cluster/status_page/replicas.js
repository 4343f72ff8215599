// The replicas of all deployments by state.

import { byId, make, put, setRows } from "./dom.js";
import { bytes, duration } from "./format.js";

const STATES = {
  failed: { sign: "▲", kind: "warn" },
  silent: { sign: "▲", kind: "warn" },
  starting: { sign: "◔", kind: "busy" },
  draining: { sign: "◌", kind: "soft" },
  ready: { sign: "●", kind: "good" },
};
const SHOWN = ["ready", "starting", "draining", "silent", "failed"];

/** Show how many are in which state, and a row for each. */
export const showReplicas = (replicas, now_s) => {
  byId("replicas").hidden = !replicas.length;
  const strip = byId("states");
  if (!strip.firstChild) strip.append(...SHOWN.map(() => make("li")));
  SHOWN.forEach((state, index) => {
    const count = replicas.filter((each) => each.state === state).length, item = strip.children[index];
    item.className = count ? STATES[state].kind : "none";
    put(item, `${STATES[state].sign} ${count} ${state}`);
  });
  setRows(document.querySelector("#replicas tbody"), replicas.map((each) => cells(each, now_s)), "none");
};

const cells = (member, now_s) => {
  const { sign, kind } = STATES[member.state], since = member.since_s;
  return [
    { text: `${sign} ${member.state}`, kind },
    member.deployment,
    detail(member),
    { text: member.replica_id, title: member.replica_id },
    {
      text: since === null ? "-" : duration(now_s - since), kind: "n",
      title: since === null ? "" : new Date(since * 1000).toLocaleString(),
    },
    { text: member.host || "-", title: member.host },
    { text: String(member.pid || "-"), kind: "n" },
  ];
};

const detail = ({ state, reason, waits_for, done_bytes: done, total_bytes: total, pid }) => {
  if (state === "failed") return { text: reason, title: reason, kind: "words" };
  if (state === "silent") return { text: "no heartbeat comes", kind: "words" };
  if (state !== "starting") return "";
  if (waits_for) return { text: `waits for ${waits_for}`, title: waits_for, kind: "words" };
  if (total) return { text: `${bytes(done)} of ${bytes(total)}`, part: done / total };
  return pid ? "begins" : "waits for a process";
};
