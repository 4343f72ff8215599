"""Llama 4 models as numbers, and the memory and arithmetic of serving one. GPUs are `herd plan`'s.

Sizes are those of the published models; every formula counts bytes and operations from tensor shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ExpertFormat = Literal["bf16", "fp8", "int4"]

HIDDEN, EXPERT_WIDTH, KV_WIDTH = 5120, 8192, 1024
"""Hidden size, width of an expert, and width of the keys (8 heads of 128), of both models."""
EXPERT_WEIGHTS = 3 * HIDDEN * EXPERT_WIDTH
"""Weights of one expert of one layer, 125,829,120; the shared expert has as many."""
ATTENTION_WEIGHTS = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV_WIDTH
"""Weights of the attention of one layer, 62,914,560."""
HEAD_WEIGHTS = 202_048 * HIDDEN
"""Weights of the LM head, and of the embeddings."""
LAYERS, GLOBAL_LAYERS, CHUNK = 48, 12, 8192
"""Layers, those of them that see the whole context, and what the others see of it."""
KV_BYTES_PER_LAYER = 2 * KV_WIDTH * 2
"""Bytes of keys and values of a token in one layer, bf16."""
BITS = {"bf16": 16.0, "fp8": 8.0, "int4": 4.125}
"""Per weight of an expert; int4 with a bf16 scale per group of 128."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """One Llama 4 text model."""

    name: str
    num_experts: int
    moe_layers: int
    groups: int
    """Expert groups; each must fit one GPU and leave room for further experts."""
    expert_format: ExpertFormat = "fp8"

    @property
    def router_weights(self) -> int:
        """Weights a token passes outside the routed experts: attention, shared experts, dense MLPs, LM head."""
        dense = (LAYERS - self.moe_layers) * 2 * EXPERT_WEIGHTS
        return LAYERS * ATTENTION_WEIGHTS + self.moe_layers * EXPERT_WEIGHTS + dense + HEAD_WEIGHTS

    @property
    def router_bytes(self) -> float:
        """Bytes of a router's weights, bf16, the embeddings included."""
        return 2.0 * (self.router_weights + HEAD_WEIGHTS)

    @property
    def pass_bytes(self) -> float:
        """Bytes of one expert of one layer."""
        return EXPERT_WEIGHTS * BITS[self.expert_format] / 8

    @property
    def expert_bytes(self) -> float:
        """Bytes of one expert through all MoE layers."""
        return self.pass_bytes * self.moe_layers

    @property
    def group_experts(self) -> int:
        """Experts per group."""
        return self.num_experts // self.groups

    @property
    def group_bytes(self) -> float:
        """Bytes of one group."""
        return self.expert_bytes * self.group_experts

    @property
    def total_bytes(self) -> float:
        """Bytes of everything."""
        return self.router_bytes + self.expert_bytes * self.num_experts


SCOUT = Model(name="scout", num_experts=16, moe_layers=48, groups=4)
MAVERICK = Model(name="maverick", num_experts=128, moe_layers=24, groups=8)
MODELS = {model.name: model for model in (SCOUT, MAVERICK)}


def kv_bytes(context: float) -> float:
    """Return the bytes of a sequence's keys and values: all of it in 12 layers, one chunk at most in the other 36."""
    local = LAYERS - GLOBAL_LAYERS
    return KV_BYTES_PER_LAYER * (GLOBAL_LAYERS * context + local * min(context, CHUNK))


def attention_flops(context: float) -> float:
    """Return the operations that the attention of one token with a context takes, products with weights excluded."""
    return 4 * HIDDEN * (GLOBAL_LAYERS * context + (LAYERS - GLOBAL_LAYERS) * min(context, CHUNK))
