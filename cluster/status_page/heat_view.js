// One of the two heat maps: by replica or by layer, as chosen; the choice is in the address, so that a link keeps it.

import { byId, put } from "./dom.js";
import { short } from "./format.js";
import { HeatMap } from "./heat_map.js";
import { LayerMap } from "./layer_map.js";

const BY_LAYER = "#by-layer";

export class HeatView {
  #byReplica = new HeatMap();
  #byLayer = new LayerMap();
  #state = null;
  #passedOver = null;

  constructor() {
    byId("map-by-layer").checked = location.hash === BY_LAYER;
    byId("map-choice").addEventListener("change", () => {
      history.replaceState(null, "", byId("map-by-layer").checked ? BY_LAYER : location.pathname);
      if (this.#state) this.show(this.#state, this.#passedOver);
    });
  }

  /** Show a state's expert replicas; there is at least one. */
  show(state, passedOver) {
    this.#state = state;
    this.#passedOver = passedOver;
    const { model, expert_replicas: replicas, layer_load: layers } = state;
    byId("map-by-layer").disabled = !layers.length;
    const isByLayer = byId("map-by-layer").checked && layers.length > 0;
    byId("heat-part").classList.toggle("by-layer", isByLayer);
    byId("heat").parentNode.hidden = isByLayer;
    byId("layer-heat").parentNode.hidden = !isByLayer;
    const most = isByLayer
      ? this.#byLayer.show(layers, copiesOf(model.num_experts, replicas))
      : this.#byReplica.show(model.num_experts, replicas, passedOver);
    put(byId("heat-unit"), isByLayer ? "tokens/s of an expert in a layer" : "tokens/s of an expert, all layers");
    put(byId("heat-middle"), short(most / 4));
    put(byId("heat-most"), short(most));
  }
}

/** How many replicas hold each expert. */
const copiesOf = (numExperts, replicas) => {
  const copies = Array(numExperts).fill(0);
  for (const replica of replicas) for (const expert of replica.expert_ids) copies[expert] += 1;
  return copies;
};
