"""Seconds of a decoding step and of a prompt, from the bytes that are read and the operations that are done.

One step of a router, in the order of its layers:

    attention, dense MLPs, LM head      read once; the batch's keys and values read once
    each MoE layer                      the shared expert here, while the dispatch goes out, is computed and comes back
    each global layer, with shards      queries to every shard, partial attention back

Products take what they read or what they compute, whichever is more, at a part of the device's peaks. Routers step at
the same time and meet at the experts: where those, or a device that is shared, are busy for longer than a step, that is
what a step takes. Nothing queues otherwise, experts are chosen evenly, and no prompt is read meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.planner.assumptions import (
    CPU_STEP_S,
    FLOPS_SHARE,
    HOP_S,
    MEMORY_SHARE,
    NETWORK_HOP_S,
    NETWORK_SHARE,
    STEP_S,
)
from cluster.planner.memory import Memory
from cluster.planner.model_bytes import num_weights
from cluster.planner.placement import Role, Shape
from cluster.planner.question import Question
from cluster.planner.weight_form import Component
from models.config import ModelConfig
from router.kv_cache.layout import CacheLayout

OWN = "attention, dense MLPs, LM head"
KV = "keys and values"
SHARED = "shared experts"
EXPERTS = "routed experts"
DISPATCH = "dispatches' hops and bytes"
HIDDEN = "hidden behind shared experts"
SHARDS = "context shards' attention"
EXCHANGE = "context shards' hops and bytes"
WAITING = "waiting for a busy device"
STEP = "launches and Python"

_OWN: tuple[Component, ...] = ("attention", "dense MLP", "gates and norms")
_LOG_SUM_BYTES = 4


@dataclass(frozen=True, slots=True)
class Duration:
    """How long something takes, and of what it is made up."""

    parts: Mapping[str, float]
    """Seconds by what they go to; what the shared expert hides is negative."""

    @property
    def seconds(self) -> float:
        """Return the sum."""
        return sum(self.parts.values())


def distinct_experts(num_experts: float, tokens: float, per_token: float = 1) -> float:
    """Return how many of a layer's experts a batch reaches, mean: E (1 - (1 - K/E)^B)."""
    missed: float = (1 - per_token / num_experts) ** tokens
    return num_experts * (1 - missed)


def busiest_group(group_experts: int, num_groups: int, chance: float) -> float:
    """Return how many experts the group with most of them has to run, mean.

    Each expert is reached with the same chance, whatever the others are: E[max of G] = sum over x of 1 - F(x)^G, with F
    the binomial distribution's.
    """
    below, total = 0.0, 0.0
    for reached in range(group_experts):
        odds: float = chance**reached * (1 - chance) ** (group_experts - reached)
        below += math.comb(group_experts, reached) * odds
        total += 1 - min(below, 1.0) ** num_groups
    return total


def visible_tokens(num_tokens: int, chunk: int | None) -> int:
    """Return how many keys all queries of a prompt see together in a layer: its quadratic part."""
    if chunk is None:
        return num_tokens * (num_tokens + 1) // 2
    whole, rest = divmod(num_tokens, chunk)
    return whole * visible_tokens(chunk, None) + visible_tokens(rest, None)


@dataclass(frozen=True)
class Roofline:
    """How fast a placement can be.

    Args:
        memory: the placement with its bytes.
    """

    memory: Memory

    def decode(self, context: int, concurrency: int) -> Duration:
        """Return a step that gives each of so many sequences of so many tokens one more."""
        layout, shards = self._layout, self._shape.shards
        batch, active = -(-concurrency // self._shape.routers), min(self._shape.routers, concurrency)
        here = 0 if shards else context
        local = min(context, layout.chunk or 0)
        kv_bytes = batch * (here * layout.global_token_bytes + local * layout.local_token_bytes)
        pairs = batch * (here * len(layout.global_layers) + local * len(layout.local_layers))
        parts = {
            OWN: self._seconds(self._bytes(*_OWN, "LM head"), 2 * batch * self._weights(*_OWN, "LM head")),
            KV: self._seconds(kv_bytes, self._attention_flops(pairs)),
            STEP: self._step_s,
        }
        parts |= self._moe(batch, steps=1)
        if shards:
            parts |= self._shards(batch, batch * context, kv_tokens=batch * context, steps=1)
        waiting = self._busiest_s(parts, batch, active) - sum(parts.values())
        return Duration(parts | ({WAITING: waiting} if waiting > 0 else {}))

    def prefill(self, num_tokens: int) -> Duration:
        """Return the reading of a prompt by a router that does nothing else, the first token included."""
        layout, shards = self._layout, self._shape.shards
        steps = -(-num_tokens // self.memory.step_tokens)
        linear = self._seconds(steps * self._bytes(*_OWN), 2 * num_tokens * self._weights(*_OWN))
        head = self._seconds(self._bytes("LM head"), 2 * self._weights("LM head"))
        pairs = visible_tokens(num_tokens, layout.chunk) * len(layout.local_layers)
        if not shards:
            pairs += visible_tokens(num_tokens, None) * len(layout.global_layers)
        parts = {OWN: linear + head, KV: self._seconds(0, self._attention_flops(pairs)), STEP: steps * self._step_s}
        parts |= self._moe(num_tokens / steps, steps=steps)
        if shards:
            pairs = visible_tokens(num_tokens, None)
            parts |= self._shards(num_tokens / steps, pairs / steps, kv_tokens=num_tokens / 2, steps=steps)
        return Duration(parts)

    def _moe(self, tokens: float, *, steps: int) -> dict[str, float]:
        """Return what the MoE layers of some steps take, each of so many tokens."""
        config, shape = self._config, self._shape
        num_layers = len(config.moe_layers)
        if not num_layers:
            return {}
        layers = steps * num_layers
        shared = self._seconds(self._bytes("shared expert"), 2 * tokens * self._weights("shared expert")) / num_layers
        experts = self._experts_s(tokens)
        if shape.is_local:
            return {SHARED: layers * shared, EXPERTS: layers * experts}
        payload = 2 * tokens * config.experts_per_token * config.hidden_size * self._question.item_bytes
        dispatch = self._hop_s("experts") + self._wire_s(payload, "experts")
        parts = {SHARED: layers * shared, EXPERTS: layers * experts, DISPATCH: layers * dispatch}
        if not self._is_one_device:
            parts[HIDDEN] = -layers * min(shared, dispatch + experts)
        return parts

    def _experts_s(self, tokens: float) -> float:
        """Return what the experts of one layer take that are done last."""
        config, shape = self._config, self._shape
        chance = distinct_experts(1, tokens, config.experts_per_token / config.num_experts)
        slots = tokens * config.experts_per_token
        if self._is_one_device:
            return self._experts_work_s(config.num_experts * chance, slots)
        busiest = busiest_group(self.memory.placement.group_experts, shape.groups, chance)
        # Chances as if experts were chosen apart: together, even one token reaches one of them.
        reached = max(busiest / shape.copies, 1)
        return self._experts_work_s(reached, slots / (shape.groups * shape.copies))

    def _experts_work_s(self, reached: float, slots: float) -> float:
        """Return what a replica takes to run some experts of a layer on so many (token, choice) slots."""
        weights = self._weights("experts") / len(self._config.moe_layers)
        return self._seconds(reached * self._question.model_bytes.expert_layer, 2 * slots * weights)

    def _shards(self, tokens: float, pairs: float, *, kv_tokens: float, steps: int) -> dict[str, float]:
        """Return what global layers take whose keys and values are on shards.

        Args:
            tokens: of each step.
            pairs: keys that the queries of a step see together.
            kv_tokens: tokens whose keys and values are read for them, mean; queries of one sequence read together.
            steps: how many.
        """
        config, shards = self._config, self._shape.shards
        layers = steps * len(self._layout.global_layers)
        kv_bytes = kv_tokens * self._layout.bytes_per_token_layer
        attending = self._seconds(kv_bytes / shards, self._attention_flops(pairs) / shards)
        queries = config.num_heads * (2 * config.head_size * self._question.item_bytes + _LOG_SUM_BYTES)
        keys = 2 * config.num_kv_heads * config.head_size * self._question.item_bytes
        exchange = self._hop_s("context shard") + self._wire_s(tokens * (shards * queries + keys), "context shard")
        return {SHARDS: layers * attending, EXCHANGE: layers * exchange}

    def _busiest_s(self, parts: Mapping[str, float], batch: int, active: int) -> float:
        """Return how long the busiest device computes while each router makes a step."""
        if self._is_one_device:
            return 0.0
        config, shape = self._config, self._shape
        own = parts[OWN] + parts[KV] + parts.get(SHARED, 0.0)
        experts = 0.0
        if shape.groups:
            chance = distinct_experts(1, batch, config.experts_per_token / config.num_experts)
            reached = self.memory.placement.group_experts * chance / shape.copies
            slots = batch * config.experts_per_token / (shape.groups * shape.copies)
            experts = active * len(config.moe_layers) * self._experts_work_s(reached, slots)
        own = own + experts if self.memory.placement.is_shared else own
        return max(own, experts, active * parts.get(SHARDS, 0.0))

    def _seconds(self, num_bytes: float, flops: float) -> float:
        """Return what a device takes to read so much and compute so much."""
        device = self._question.fleet.device
        # A CPU computes half as many products of four bytes, a GPU is never asked to.
        rate = FLOPS_SHARE.value * device.flops * (2 / self._question.item_bytes)
        return max(num_bytes / (MEMORY_SHARE.value * device.memory_bytes_per_s), flops / rate)

    def _attention_flops(self, pairs: float) -> float:
        """Return the operations of queries and keys that see each other, and of the values behind them."""
        return 4 * self._config.num_heads * self._config.head_size * pairs

    def _hop_s(self, role: Role) -> float:
        return NETWORK_HOP_S.value if self._crosses(role) else HOP_S.value

    def _wire_s(self, num_bytes: float, role: Role) -> float:
        device = self._question.fleet.device
        rate = device.network_bytes_per_s if self._crosses(role) else device.link_bytes_per_s
        return num_bytes / (NETWORK_SHARE.value * rate)

    def _crosses(self, role: Role) -> bool:
        """Tell whether a router meets any process of a kind on another node: it does not prefer those of its own."""
        placement, fleet = self.memory.placement, self._question.fleet
        return len(placement.nodes_of("router", fleet) | placement.nodes_of(role, fleet)) > 1

    def _bytes(self, *components: Component) -> int:
        return sum(self._question.model_bytes.component(component) for component in components)

    def _weights(self, *components: Component) -> int:
        return sum(num_weights(self._config, component) for component in components)

    @property
    def _question(self) -> Question:
        return self.memory.question

    @property
    def _config(self) -> ModelConfig:
        return self.memory.question.config

    @property
    def _layout(self) -> CacheLayout:
        return self.memory.router_layout

    @property
    def _shape(self) -> Shape:
        return self.memory.placement.shape

    @property
    def _is_one_device(self) -> bool:
        return self._question.fleet.num_devices == 1

    @property
    def _step_s(self) -> float:
        return (CPU_STEP_S if self._question.fleet.device.is_cpu else STEP_S).value
