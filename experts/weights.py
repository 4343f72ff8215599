"""The expert weights one process holds: chosen logical experts, through every MoE layer."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor

from experts.kernels import Kernel, choose
from models.config import ModelConfig
from models.linear import Quantization
from models.llama4.mlp import Mlp
from protos.errors import BadConfig

Progress = Callable[[int, int], None]
"""(bytes read so far, bytes to read in all)."""


class ExpertSource(Protocol):
    """Where expert weights come from: `models.checkpoint.Checkpoint`."""

    @property
    def config(self) -> ModelConfig:
        """The model they belong to."""

    @property
    def fingerprint(self) -> str:
        """Which model exactly."""

    @property
    def bytes_read(self) -> int:
        """Bytes read so far."""

    def num_bytes(self, name: str) -> int:
        """Return the bytes that reading a tensor reads."""

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return one tensor by Herd's name for it, converted to `dtype` if given."""


class ExpertWeights:
    """Resident weights and the kernel that runs them. Made by `load`.

    Args:
        source: where they were read from.
        expert_ids: logical experts held, ascending.
        dtype: of weights and tokens.
        packed: by layer and expert, as `kernel` packed them.
        kernel: what runs them.
        loaded_bytes: read from the checkpoint for them.
    """

    def __init__(
        self,
        source: ExpertSource,
        expert_ids: tuple[int, ...],
        dtype: torch.dtype,
        packed: dict[int, dict[int, Mlp]],
        kernel: Kernel,
        loaded_bytes: int,
    ) -> None:
        self.config = source.config
        self.fingerprint = source.fingerprint
        self.expert_ids = expert_ids
        self.dtype = dtype
        self.loaded_bytes = loaded_bytes
        self._packed = packed
        self._kernel = kernel

    @classmethod
    def load(
        cls,
        source: ExpertSource,
        expert_ids: Sequence[int],
        dtype: torch.dtype,
        progress: Progress | None = None,
        *,
        device: torch.device | None = None,
        quantize: Quantization | None = None,
    ) -> ExpertWeights:
        """Read chosen experts of every MoE layer and nothing else.

        Args:
            source: an opened checkpoint.
            expert_ids: logical experts, in any order.
            dtype: what to convert weights to.
            progress: called after every expert of a layer.
            device: where to hold them; None: the CPU.
            quantize: how to round them; None: not at all.

        Raises:
            BadConfig: the model has no routed experts, or an id is out of range or given twice.
            BadCheckpoint: the weights cannot be read.

        Cost: blocks on the disk; one expert of one layer is in memory three times for a moment.
        """
        ids = _check_ids(source.config, expert_ids)
        device = device or torch.device("cpu")
        kernel = choose(device, quantize)
        names = {
            (layer, expert): (f"layers.{layer}.experts.{expert}.gate_up", f"layers.{layer}.experts.{expert}.down")
            for layer in source.config.moe_layers
            for expert in ids
        }
        total_bytes = sum(source.num_bytes(name) for pair in names.values() for name in pair)
        bytes_before, done_bytes = source.bytes_read, 0
        packed: dict[int, dict[int, Mlp]] = {layer: {} for layer in source.config.moe_layers}
        for (layer, expert), pair in names.items():
            gate_up_D2F, down_FD = (source.read(name, dtype).to(device) for name in pair)
            packed[layer][expert] = kernel.pack(gate_up_D2F, down_FD)
            done_bytes += sum(source.num_bytes(name) for name in pair)
            if expert == ids[-1]:
                _return_free_memory()
            if progress is not None:
                progress(done_bytes, total_bytes)
        return cls(source, ids, dtype, packed, kernel, source.bytes_read - bytes_before)

    @property
    def layers(self) -> tuple[int, ...]:
        """MoE layers, ascending."""
        return self.config.moe_layers

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights in memory, as they are held."""
        return sum(expert.num_bytes for experts in self._packed.values() for expert in experts.values())

    def run(self, layer: int, hidden_ND: Tensor, expert_ids: Sequence[int], token_counts: Sequence[int]) -> Tensor:
        """Return the experts' outputs [N, D], in the order of the tokens.

        Args:
            layer: a MoE layer of the model.
            hidden_ND: [N, D] in our dtype, sorted by expert, already multiplied by the scores; only read.
            expert_ids: held logical experts, ascending.
            token_counts: rows for each of them; they sum to N.
        """
        held = self._packed[layer]
        return self._kernel.run([held[expert] for expert in expert_ids], token_counts, hidden_ND)


def _check_ids(config: ModelConfig, expert_ids: Sequence[int]) -> tuple[int, ...]:
    """Return the ids ascending."""
    if not config.is_moe:
        raise BadConfig("expected a model with routed experts, found a dense one: it needs no expert replicas")
    ids = tuple(sorted(expert_ids))
    wrong = [expert for expert in ids if not 0 <= expert < config.num_experts]
    if wrong:
        raise BadConfig(f"expected expert ids from 0 to {config.num_experts - 1}, found {wrong}: leave them out")
    if not ids or len(set(ids)) != len(ids):
        raise BadConfig(f"expected at least one expert, each id once, found {list(expert_ids)}: give each once")
    return ids


def _return_free_memory() -> None:
    """Give the system back what reading and packing left behind between the weights that stay.

    glibc keeps freed blocks below 32 MiB for itself: 121 MB resident for 75 MB of weights, 77 MB after this (torch
    2.13, x86-64 Linux, 2026-11-21). Other C libraries have no such call and no such need.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
