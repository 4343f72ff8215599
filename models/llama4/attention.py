"""Grouped-query attention up to the softmax: projections, rotation, QK norm, position temperature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import ModelConfig
from models.linear import Linear
from models.llama4.norm import rms_norm
from models.llama4.rope import RotaryEmbedding


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """Projections of one layer, [out, in]: qkv [(H + 2G)·C, D] stacked in that order, o [D, H·C]."""

    qkv: Linear
    o: Linear

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights in memory."""
        return self.qkv.num_bytes + self.o.num_bytes


@dataclass(frozen=True, slots=True)
class PositionTables:
    """What depends on this step's positions only, so that all layers share it.

    `turns` are RotaryEmbedding.turns; `temperature_T` is [T, 1, 1] float32, None where the model has none.
    """

    turns: Tensor
    temperature_T: Tensor | None


class Attention:
    """The position-dependent arithmetic of every attention layer of one model."""

    def __init__(self, config: ModelConfig, device: torch.device | str = "cpu") -> None:
        self._config = config
        self._rope = RotaryEmbedding(config, device)

    def tables(self, positions_T: Tensor) -> PositionTables:
        """Return what the layers need to know of absolute positions [T] int64."""
        temperature = position_temperature(positions_T, self._config) if self._config.attn_temperature else None
        return PositionTables(self._rope.turns(positions_T), temperature)

    def project(
        self, layer: int, hidden_TD: Tensor, weights: AttentionWeights, tables: PositionTables
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return q [T, H, C] and k, v [T, G, C], ready for the cache and the softmax.

        The order rotate, normalise, scale is Llama 4's: QK norm comes after the rotation, the temperature
        touches queries of NoPE layers only.
        """
        config = self._config
        qkv = weights.qkv(hidden_TD).unflatten(-1, (-1, config.head_size))
        num_queries, num_keys = config.num_heads, config.num_kv_heads
        qk, v_TGC = qkv.split((num_queries + num_keys, num_keys), dim=1)
        if layer not in config.nope_layers:
            # Queries and keys in one go: head by head they are treated alike, and each operation has its price.
            qk = self._rope.rotate(qk, tables.turns)
            if config.qk_norm:
                qk = rms_norm(qk, None, config.norm_eps)
        q_THC, k_TGC = qk.split((num_queries, num_keys), dim=1)
        if layer in config.nope_layers and tables.temperature_T is not None:
            q_THC = (q_THC * tables.temperature_T).to(q_THC.dtype)
        return q_THC, k_TGC, v_TGC


def position_temperature(positions_T: Tensor, config: ModelConfig) -> Tensor:
    """Return the factor on a NoPE layer's queries, [T, 1, 1] float32.

    1 + scale · ln(1 + floor((p + 1) / floor_scale)) for the 0-based position p: it keeps the softmax sharp over
    contexts longer than training saw. Source: meta-llama/llama-models, models/llama4/model.py.
    """
    steps = torch.floor((positions_T.to(torch.float32) + 1) / config.temperature_floor)
    return (torch.log1p(steps) * config.temperature_scale + 1)[:, None, None]
