"""How long a step takes, from bytes and operations: for a router with experts elsewhere, and for a whole model at once.

Both are treated alike: the same parts of the peaks are reached, nothing overlaps anything. Where a choice had to be
made it favours the whole model: its experts are loaded evenly, and Herd's dispatches cost what Python and gRPC cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from benchmarks.simulation.hardware import (
    EXPERT_WEIGHTS,
    HEAD_WEIGHTS,
    HIDDEN,
    LAYERS,
    Model,
    attention_flops,
    kv_bytes,
)
from cluster.planner import assumptions
from cluster.planner.hardware import Device
from cluster.planner.roofline import distinct_experts

MEMORY_SHARE = assumptions.MEMORY_SHARE.value
FLOPS_SHARE = assumptions.FLOPS_SHARE.value
NETWORK_SHARE = assumptions.NETWORK_SHARE.value
USABLE = 0.9
"""Part of the memory that weights and KV may take."""
STEP_TOKENS = 2048
"""Prompt tokens of a step: `router.step_tokens`."""
STRETCH = 1.75
"""`router.prefill_stretch`: how much longer a step with prompts may take."""
HOP_S = assumptions.HOP_S.value
COLLECTIVE_S = 15e-6
"""What an all-reduce within a node costs; a whole model has two per layer. An assumption."""
MERGED = 4.0
"""Dispatches of different routers that an expert replica computes at once, mean. An assumption; 1: never any."""


class Unit(Protocol):
    """What holds sequences: a router or a whole model."""

    @property
    def kv_bytes(self) -> float:
        """Bytes for keys and values."""

    def decode_step_s(self, batch: float, context: float, expert_use: float) -> float:
        """Return the seconds of a step that gives every sequence a token."""

    def prefill_s(self, context: float, expert_use: float) -> float:
        """Return the seconds a prompt token takes when nobody generates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterUnit:
    """A Herd router: one GPU; experts are elsewhere."""

    model: Model
    gpu: Device
    hop_s: float = HOP_S

    @property
    def kv_bytes(self) -> float:
        """Bytes for keys and values."""
        return USABLE * self.gpu.memory_bytes - self.model.router_bytes

    def decode_step_s(self, batch: float, context: float, expert_use: float) -> float:
        """Return the seconds of a step: weights and KV are read, and every MoE layer waits for the busiest replica."""
        memory = 2 * self.model.router_weights + batch * kv_bytes(context)
        flops = batch * (2 * self.model.router_weights + attention_flops(context))
        own = max(memory / (MEMORY_SHARE * self.gpu.memory_bytes_per_s), flops / (FLOPS_SHARE * self.gpu.flops))
        return own + self._expert_wait_s(batch, expert_use)

    def prefill_s(self, context: float, expert_use: float) -> float:
        """Return the seconds a prompt token takes, in steps of STEP_TOKENS."""
        flops = 2 * (self.model.router_weights - HEAD_WEIGHTS) + attention_flops(context / 2)
        own = flops / (FLOPS_SHARE * self.gpu.flops)
        return own + self._expert_wait_s(STEP_TOKENS, expert_use) / STEP_TOKENS

    def _expert_wait_s(self, tokens: float, expert_use: float) -> float:
        """Return what the MoE layers add: the hop, the computing, and the wait for it, as at a server of even jobs."""
        in_group = tokens / self.model.groups
        computing = distinct_experts(self.model.group_experts, in_group) * pass_s(self.model, self.gpu)
        computing = max(computing, in_group * visit_s(self.model, self.gpu))
        return self.model.moe_layers * (self.hop_s + computing * (1 + queue_factor(expert_use)))


@dataclass(frozen=True, kw_only=True, slots=True)
class WholeUnit:
    """A whole model on as many GPUs of a node as it needs, every layer split over all of them."""

    model: Model
    gpu: Device

    @property
    def num_gpus(self) -> int:
        """The fewest, as a power of 2, that leave a quarter of the memory for keys and values; a node has 8."""
        count = 1
        while count < 8 and self.model.total_bytes > 0.75 * USABLE * count * self.gpu.memory_bytes:
            count *= 2
        return count

    @property
    def kv_bytes(self) -> float:
        """Bytes for keys and values."""
        return USABLE * self.num_gpus * self.gpu.memory_bytes - self.model.total_bytes

    def decode_step_s(self, batch: float, context: float, expert_use: float) -> float:
        """Return the seconds of a step: all weights that are reached and the KV are read by all GPUs together."""
        model = self.model
        experts = model.moe_layers * distinct_experts(model.num_experts, batch) * model.pass_bytes
        memory = 2 * model.router_weights + experts + batch * kv_bytes(context)
        flops = batch * (_token_flops(model) + attention_flops(context))
        own = max(memory / (MEMORY_SHARE * self.gpu.memory_bytes_per_s), flops / (FLOPS_SHARE * self.gpu.flops))
        return own / self.num_gpus + 2 * LAYERS * COLLECTIVE_S * (self.num_gpus > 1)

    def prefill_s(self, context: float, expert_use: float) -> float:
        """Return the seconds a prompt token takes."""
        flops = _token_flops(self.model) - 2 * HEAD_WEIGHTS + attention_flops(context / 2)
        collectives = 2 * LAYERS * COLLECTIVE_S / STEP_TOKENS * (self.num_gpus > 1)
        return flops / (FLOPS_SHARE * self.gpu.flops) / self.num_gpus + collectives


def queue_factor(use: float) -> float:
    """Return how long a job waits at a server with even jobs, in jobs: use / (2 (1 - use)), the use at most 0.95."""
    use = min(use, 0.95)
    return use / (2 * (1 - use))


def pass_s(model: Model, gpu: Device) -> float:
    """Return the seconds it takes to read one expert of one layer."""
    return model.pass_bytes / (MEMORY_SHARE * gpu.memory_bytes_per_s)


def visit_s(model: Model, gpu: Device) -> float:
    """Return the seconds one token takes at one expert of one layer, weights apart: its arithmetic or its transport."""
    speed = 1 if model.expert_format == "bf16" else 2
    arithmetic = 2 * EXPERT_WEIGHTS / (FLOPS_SHARE * speed * gpu.flops)
    return max(arithmetic, 2 * HIDDEN / (NETWORK_SHARE * gpu.network_bytes_per_s))


def expert_seconds(model: Model, gpu: Device, *, batch: float, steps_per_s: float, prompt_tokens_per_s: float) -> float:
    """Return the seconds of expert computing per second that routers ask for, all experts and layers together.

    Args:
        model: served.
        gpu: of expert replicas.
        batch: sequences of a router's step.
        steps_per_s: of all routers together.
        prompt_tokens_per_s: of all routers together, in steps of STEP_TOKENS.
    """
    step = _layer_seconds(model, gpu, batch)
    chunk = _layer_seconds(model, gpu, STEP_TOKENS)
    return model.moe_layers * (steps_per_s * step + prompt_tokens_per_s / STEP_TOKENS * chunk)


def _layer_seconds(model: Model, gpu: Device, tokens: float) -> float:
    """Return the seconds of computing that the tokens of a dispatch ask of one layer's experts."""
    reading = distinct_experts(model.num_experts, tokens) * pass_s(model, gpu) / MERGED
    return max(reading, tokens * visit_s(model, gpu))


def _token_flops(model: Model) -> float:
    """Return the operations of a token's products with weights; experts in 8 or 4 bits run at twice the speed."""
    speed = 1 if model.expert_format == "bf16" else 2
    return 2 * model.router_weights + 2 * model.moe_layers * EXPERT_WEIGHTS / speed


def most_sequences(unit: Unit, context: float, token_slo_s: float, expert_use: float = 0.7) -> float:
    """Return how many sequences a unit takes: as KV allows, and as a stretched step leaves the token in time."""
    low, high = 1.0, unit.kv_bytes / kv_bytes(context)
    if unit.decode_step_s(high, context, expert_use) * STRETCH <= token_slo_s:
        return high
    for _ in range(40):
        middle = (low + high) / 2
        if unit.decode_step_s(middle, context, expert_use) * STRETCH <= token_slo_s:
            low = middle
        else:
            high = middle
    return low
