"""Bytes of weights in memory, as processes will hold them: from a checkpoint's shapes, before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from cluster.devices import Device
from models.checkpoint import Checkpoint, kept_names
from models.checkpoint.code_blocks import CodeForm
from models.checkpoint.tensor_shapes import is_expert
from models.gpu.weight import GROUP
from models.linear import BITS_PER_WEIGHT, Quantization

_SCALE_BITS = 16
"""Of a group of weights in four bits, on a GPU."""


@dataclass(frozen=True)
class WeightBytes:
    """What a model's weights take.

    Args:
        checkpoint: the model's.
        item_bytes: of one value of what they are computed with.
        quantize: how they are rounded; None: as they are stored.
    """

    checkpoint: Checkpoint
    item_bytes: int
    quantize: Quantization | None

    def router(self, device: Device) -> int:
        """Return the bytes a router holds there, experts left out."""
        config, weights = self.checkpoint.config, self.checkpoint.router_weights
        if self.quantize is None:
            return self._as_stored(weights, device, of_experts=False)
        embeddings = config.vocab_size * config.hidden_size
        # Embeddings stay as they are; the LM head has 8 bits, as a copy where the two are tied.
        rest = weights - (embeddings if config.tie_embeddings else 2 * embeddings)
        return embeddings * (self.item_bytes + 1) + _rounded(rest, self.quantize, device)

    def experts(self, device: Device) -> int:
        """Return the bytes of all routed experts there, each held once."""
        config = self.checkpoint.config
        weights = config.num_experts * self.checkpoint.expert_weights
        if self.quantize is not None:
            return _rounded(weights, self.quantize, device)
        return self._as_stored(weights, device, of_experts=True)

    def _as_stored(self, num_weights: int, device: Device, *, of_experts: bool) -> int:
        """Return the bytes of so many weights of which some stay the codes they are."""
        num_bytes = num_weights * self.item_bytes
        for each in _kept(self.checkpoint, device):
            if each.is_expert == of_experts:
                num_bytes += _rounded(each.num_weights, each.form, device) - each.num_weights * self.item_bytes
        return num_bytes


class _Kept(NamedTuple):
    """A matrix that stays the codes it is."""

    num_weights: int
    form: CodeForm
    is_expert: bool


@lru_cache(maxsize=2)
def _kept(checkpoint: Checkpoint, device: Device) -> tuple[_Kept, ...]:
    """Return what stays codes there. Cost: a look at every tensor; a plan asks again and again."""
    names = kept_names(checkpoint, for_gpu=device == "cuda")
    found = ((name, checkpoint.stored_codes(name)) for name in names)
    return tuple(_Kept(checkpoint.num_weights(name), codes.form, is_expert(name)) for name, codes in found if codes)


def _rounded(num_weights: int, quantize: Quantization, device: Device) -> int:
    if device == "cuda" and quantize == "int4":
        return num_weights * (4 * GROUP + _SCALE_BITS) // (8 * GROUP)
    return num_weights * BITS_PER_WEIGHT[quantize] // 8
