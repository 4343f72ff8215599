"""A checkpoint whose codes are read as they were rounded, where they are multiplied so, not as what they stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from models.arena import Arena
from models.checkpoint.checkpoint import Checkpoint
from models.checkpoint.code_blocks import StoredCodes
from models.checkpoint.tensor_shapes import expert_names, is_expert
from models.config import ModelConfig
from models.gpu.device import is_supported
from models.gpu.weight import GROUP
from models.linear import Fp8Weight, Int4Weight, Quantization

_CPU = torch.device("cpu")


class KeptCodes:
    """Reads matrices as codes where they are stored and multiplied so, everything else as the checkpoint does.

    Args:
        checkpoint: opened.
        names: of the matrices that are read as codes: see `kept_names`.
    """

    def __init__(self, checkpoint: Checkpoint, names: frozenset[str]) -> None:
        self.config: ModelConfig = checkpoint.config
        self.fingerprint = checkpoint.fingerprint
        self._checkpoint = checkpoint
        self.names = names
        """Of the matrices that are read as codes."""

    @property
    def keeps_experts(self) -> bool:
        """Tell whether a routed expert is read as codes: those travel between replicas in no form yet."""
        return any(map(is_expert, self.names))

    @property
    def bytes_read(self) -> int:
        """Bytes of weights read from files so far."""
        return self._checkpoint.bytes_read

    def num_bytes(self, name: str) -> int:
        """Return the bytes of a tensor as it is stored."""
        return self._checkpoint.num_bytes(name)

    def read(
        self, name: str, dtype: torch.dtype | None = None, memory: Arena | None = None
    ) -> Tensor | Int4Weight | Fp8Weight:
        """Read one tensor: see `Checkpoint.read_codes` and `Checkpoint.read`."""
        if name in self.names:
            return self._checkpoint.read_codes(name, memory)
        return self._checkpoint.read(name, dtype, memory)


def kept_names(
    checkpoint: Checkpoint, quantize: Quantization | None = None, *, for_gpu: bool = False
) -> frozenset[str]:
    """Return the names of matrices that can be read as codes; both of an expert's, or none.

    Args:
        checkpoint: opened.
        quantize: what weights are to be rounded to: only codes of that kind stay; None: all that can.
        for_gpu: whether a GPU's kernels multiply them, which take fp8, too, and groups of 128; else a CPU does, whose
            LM head never has 4 bits.
    """

    def is_kept(name: str) -> bool:
        codes = checkpoint.stored_codes(name)
        if codes is None or (quantize is not None and codes.form != quantize):
            return False
        return _is_multiplied_by_gpu(codes) if for_gpu else codes.form == "int4" and name != "lm_head"

    # The embedding is looked up, and which experts a token visits is decided in full precision.
    exact = {"embed", *(f"layers.{layer}.gate" for layer in checkpoint.config.moe_layers)}
    names = {name for name in checkpoint.names if name not in exact and is_kept(name)}
    for layer in checkpoint.config.moe_layers:
        for expert in range(checkpoint.config.num_experts):
            pair = set(expert_names(layer, expert))
            if not pair <= names:
                names -= pair
    return frozenset(names)


def as_stored(
    checkpoint: Checkpoint, quantize: Quantization | None, device: torch.device = _CPU
) -> Checkpoint | KeptCodes:
    """Return what weights are read from: codes as they are, where the device multiplies them and nothing else is asked.

    Args:
        checkpoint: opened.
        quantize: what weights are to be rounded to; None: not at all.
        device: where weights go.
    """
    for_gpu = is_supported(device)
    if device.type != "cpu" and not for_gpu:
        return checkpoint
    names = kept_names(checkpoint, quantize, for_gpu=for_gpu)
    return KeptCodes(checkpoint, names) if names else checkpoint


def _is_multiplied_by_gpu(codes: StoredCodes) -> bool:
    return codes.form == "fp8" or codes.group % GROUP == 0
