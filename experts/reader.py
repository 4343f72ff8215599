"""Reads experts from a source and packs them for a kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from experts.kernels import Kernel
from experts.source import ExpertSource, Progress
from models.checkpoint.tensor_shapes import expert_names
from models.llama4.mlp import Mlp


class ExpertReader:
    """Reads whole experts, layer by layer.

    Args:
        source: where they are.
        kernel: what will run them.
        dtype: what to convert weights to.
        device: where to hold them.
    """

    def __init__(self, source: ExpertSource, kernel: Kernel, dtype: torch.dtype, device: torch.device) -> None:
        self._source = source
        self._kernel = kernel
        self._dtype = dtype
        self._device = device

    def read(
        self, expert_ids: Sequence[int], progress: Progress | None, num_threads: int | None
    ) -> Iterator[tuple[int, Mapping[int, Mlp]]]:
        """Yield each expert once all its layers are in, with what is packed by layer.

        Args:
            expert_ids: which.
            progress: called after every expert of a layer.
            num_threads: that read and pack.

        Raises:
            BadCheckpoint: a weight cannot be read.
        """
        source, layers = self._source, self._source.config.moe_layers
        total_bytes = sum(
            source.num_bytes(name) for expert in expert_ids for layer in layers for name in expert_names(layer, expert)
        )
        done_bytes = 0
        for expert in expert_ids:
            by_layer = {}
            for layer in layers:
                names = expert_names(layer, expert)
                by_layer[layer] = self._read_one(names)
                done_bytes += sum(source.num_bytes(name) for name in names)
                if progress is not None:
                    progress(done_bytes, total_bytes)
            yield expert, by_layer

    def _read_one(self, names: tuple[str, str]) -> Mlp:
        gate_up_D2F, down_FD = (self._source.read(name, self._dtype).to(self._device) for name in names)
        return self._kernel.pack(gate_up_D2F, down_FD)
