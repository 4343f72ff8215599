"""A checkpoint whose four-bit weights are read as they were rounded, not as the numbers they stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from models.arena import Arena
from models.checkpoint.checkpoint import Checkpoint
from models.checkpoint.tensor_shapes import expert_names
from models.config import ModelConfig
from models.linear import Int4Weight, Quantization


class KeptCodes:
    """Reads matrices in four bits where they are stored so, everything else as the checkpoint does.

    Args:
        checkpoint: opened.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config: ModelConfig = checkpoint.config
        self.fingerprint = checkpoint.fingerprint
        self._checkpoint = checkpoint
        self.names = kept_names(checkpoint)
        """Of the matrices that are read in four bits."""

    @property
    def keeps_experts(self) -> bool:
        """Tell whether a routed expert is read in four bits: those travel between replicas in no form yet."""
        layers, experts = self.config.moe_layers, range(self.config.num_experts)
        return any(expert_names(layer, expert)[0] in self.names for layer in layers for expert in experts)

    @property
    def bytes_read(self) -> int:
        """Bytes of weights read from files so far."""
        return self._checkpoint.bytes_read

    def num_bytes(self, name: str) -> int:
        """Return the bytes of a tensor as it is stored."""
        return self._checkpoint.num_bytes(name)

    def read(self, name: str, dtype: torch.dtype | None = None, memory: Arena | None = None) -> Tensor | Int4Weight:
        """Read one tensor: see `Checkpoint.read_int4` and `Checkpoint.read`."""
        if name in self.names:
            return self._checkpoint.read_int4(name)
        return self._checkpoint.read(name, dtype, memory)


def kept_names(checkpoint: Checkpoint) -> frozenset[str]:
    """Return the names of matrices that can be kept in four bits; both of an expert's, or none."""
    names = {name for name in checkpoint.names if name not in ("embed", "lm_head") and checkpoint.keeps_int4(name)}
    for layer in checkpoint.config.moe_layers:
        for expert in range(checkpoint.config.num_experts):
            pair = set(expert_names(layer, expert))
            if not pair <= names:
                names -= pair
        names.discard(f"layers.{layer}.gate")  # which experts a token visits is decided in full precision
    return frozenset(names)


def as_stored(checkpoint: Checkpoint, quantize: Quantization | None) -> Checkpoint | KeptCodes:
    """Return what weights are read from: codes as they are, unless they are to be rounded otherwise."""
    return KeptCodes(checkpoint) if quantize is None else checkpoint
