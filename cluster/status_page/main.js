// Asks status.json each second and shows what it says.

import { byId, put } from "./dom.js";
import { bytes, count, short } from "./format.js";
import { Part } from "./freshness.js";
import { HeatView } from "./heat_view.js";
import { History } from "./history.js";
import { pollForever } from "./poll.js";
import { Rates } from "./rates.js";
import { showReplicas } from "./replicas.js";
import { passedOver, showEvents, showExperts, showRouters } from "./tables.js";
import { enableCopy, showCommand } from "./try_it.js";

const PERIOD_MS = 1000, DEADLINE_MS = 5000;

const routersPart = new Part("now", "routers"), expertsPart = new Part("experts", "events");
const replicasPart = new Part("replicas");
const rates = new Rates(), history = new History(), heatView = new HeatView();
let lastRouters = [];

const sum = (rows, key) => rows.reduce((total, row) => total + row[key], 0);

const showModel = (state) => {
  const { model } = state;
  const experts = model.num_experts
    ? `, ${model.num_experts} experts in ${model.num_moe_layers} layers, ${model.experts_per_token} per token` : "";
  put(byId("name"), model.name);
  document.title = `${model.name} - Herd`;
  put(byId("facts"), `version ${state.version}; ${model.num_layers} layers${experts}; ` +
    `${model.dtype}; context ${count(model.context_length)} tokens`);
  put(byId("in-flight"), `${count(state.sequences_in_flight)} sequences at this front door`);
  showCommand(model);
};

const showNow = (routers, at_s) => {
  const running = sum(routers, "running"), waiting = sum(routers, "waiting"), rate = rates.total();
  const used = sum(routers, "kv_used_bytes"), total = sum(routers, "kv_total_bytes"), kv = total ? used / total : 0;
  put(byId("rate"), rate === null ? "-" : short(rate));
  put(byId("sequences"), waiting ? `${running} + ${waiting} waiting` : `${running} running`);
  put(byId("kv"), `${(100 * kv).toFixed(0)} %`);
  put(byId("kv-bytes"), `, ${bytes(used)} of ${bytes(total)}`);
  put(byId("queued"), count(sum(routers, "queued_prompt_tokens")));
  put(byId("generated"), count(sum(routers, "generated_tokens")));
  history.add({ at_s, rate, running, waiting, kv });
  history.draw(byId("rate-line"), "tokens/s", [(sample) => sample.rate]);
  const both = [(sample) => sample.running, (sample) => sample.waiting];
  history.draw(byId("sequences-line"), "running and waiting", both);
  history.draw(byId("kv-line"), "KV cache in use", [(sample) => sample.kv], 1);
};

const showExpertsPart = (state) => {
  const { model, expert_replicas: replicas } = state, passed = passedOver(lastRouters);
  const over = replicas.filter((replica) => passed.has(replica.replica_id)).length;
  const copies = replicas.reduce((total, replica) => total + replica.expert_ids.length, 0);
  put(byId("experts-summary"), replicas.length
    ? `${replicas.length - over} serving, ${over} passed over; ${copies} copies of ${model.num_experts} experts; ` +
      `placement ${state.placement_version}` : "");
  byId("heat-part").hidden = !replicas.length;
  if (replicas.length) heatView.show(state, passed);
  const none = model.experts_in_router ? "none: the experts run inside the routers" : model.num_experts ? "none" : "none: a dense model";
  showExperts(replicas, passed, state.now_s, none);
  showEvents(state.events, state.now_s);
};

const show = (state) => {
  showModel(state);
  if (state.routers_error === null) {
    lastRouters = state.routers;
    rates.take(state.routers, state.routers_at_s);
    routersPart.heard();
    showNow(state.routers, state.routers_at_s);
    showRouters(state.routers, rates);
  } else routersPart.missed(state.routers_error);
  if (state.experts_error === null) {
    expertsPart.heard();
    showExpertsPart(state);
    showReplicas(state.replicas, state.now_s);
  } else expertsPart.missed(state.experts_error);
  const why = state.experts_error ?? state.replicas_error;
  if (why === null) replicasPart.heard(); else replicasPart.missed(why);
  const missing = [state.routers_error && "routers", state.experts_error && "experts"].filter(Boolean);
  showLive(missing.length ? `${missing.join(" and ")} do not answer` : "live", !missing.length);
};

const showLive = (text, isGood) => {
  put(byId("live"), text);
  byId("live").className = isGood ? "pill good" : "pill bad";
};

const ask = async () => {
  let state;
  try {
    const response = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(DEADLINE_MS) });
    if (!response.ok) throw new Error(`status.json answered ${response.status}`);
    state = await response.json();
  } catch (error) {
    for (const part of [routersPart, expertsPart, replicasPart]) part.missed(`this server does not answer (${error.message})`);
    return showLive("no answer", false);
  }
  show(state);
};

enableCopy();
pollForever(ask, PERIOD_MS);
