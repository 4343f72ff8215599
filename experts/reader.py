"""Reads experts from a source and packs them for a kernel: several matrices at a time, each straight into its place.

A matrix is read into memory that is used again for the next one, and packed from there into memory that stays, one
block per expert. New memory is what costs: 679 MB of bfloat16 (8 experts of 12 layers, D = 768, F = 1536), files in the
page cache, 2 cores of an AMD EPYC (Zen 5), Linux 6.18, torch 2.13, 2026-11-21, GB/s of best runs, in a process that has
had as much memory before (what a new one may pay besides: docs/loading.md):

    threads:                                             1      2
    read into the same 5 MB again and again             18     23
    read into new memory, tensor by tensor             2.8    3.9
    read into new memory, a block per expert           7.7     12
    mapped files copied into the same 5 MB              10     13
    read, then transposed, tensor by tensor            2.0    3.2
    read, then transposed, a block per expert          3.6    5.0

So files are not mapped: copying out of them costs more than reading, and one that is cut short would end the process.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from experts.kernels import Kernel
from experts.source import ExpertSource, Progress
from models.arena import Arena
from models.checkpoint.tensor_shapes import expert_names
from models.config import ModelConfig
from models.cpu.threads import compute_alone
from models.llama4.mlp import Mlp

# More would wait for the memory that all cores share.
_MOST_THREADS = 16
# Matrices of an expert in a layer, and what an arena may lose between two of them, in bytes.
_MATRICES, _GAP_BYTES = 2, 64


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
        self._own = threading.local()
        self._read_s = self._pack_s = 0.0
        self._adding = threading.Lock()

    @property
    def reading_share(self) -> float:
        """Of the time that threads spent here, what went into reading; 0 to 1."""
        return self._read_s / max(self._read_s + self._pack_s, 1e-9)

    def read(
        self, expert_ids: Sequence[int], progress: Progress | None, num_threads: int | None = None
    ) -> Iterator[tuple[int, Mapping[int, Mlp]]]:
        """Yield each expert once all its layers are in, with what is packed by layer.

        Args:
            expert_ids: which.
            progress: called after every expert of a layer.
            num_threads: that read and pack, each on its own; None: as many as torch computes with.

        Raises:
            BadCheckpoint: a weight cannot be read.
        """
        layers = self._source.config.moe_layers
        total_bytes = sum(self._num_bytes(layer, expert) for expert in expert_ids for layer in layers)
        num_threads = num_threads or min(torch.get_num_threads(), _MOST_THREADS)
        done_bytes = 0
        with ThreadPoolExecutor(num_threads, "experts-load", initializer=compute_alone) as pool:
            try:
                reading = deque(
                    pool.submit(self._read_one, layer, expert, arena)
                    for expert, arena in ((expert, self._arena()) for expert in expert_ids)
                    for layer in layers
                )
                for expert in expert_ids:
                    by_layer = {}
                    for layer in layers:
                        by_layer[layer] = _take(reading)
                        done_bytes += self._num_bytes(layer, expert)
                        if progress is not None:
                            progress(done_bytes, total_bytes)
                    yield expert, by_layer
            finally:
                pool.shutdown(cancel_futures=True)

    def _read_one(self, layer: int, expert: int, arena: Arena) -> Mlp:
        if not hasattr(self._own, "memory"):
            self._own.memory = (Arena(), Arena())
        began = time.perf_counter()
        gate_up, down = (
            self._source.read(name, self._dtype, memory)
            for name, memory in zip(expert_names(layer, expert), self._own.memory, strict=True)
        )
        was_read = time.perf_counter()
        if isinstance(gate_up, Tensor) and isinstance(down, Tensor):
            packed = self._kernel.pack(gate_up.to(self._device), down.to(self._device), arena)
        else:
            assert not isinstance(gate_up, Tensor)
            assert not isinstance(down, Tensor), "one of a pair is rounded"
            packed = self._kernel.pack_rounded(gate_up, down, self._dtype, arena)
        with self._adding:
            self._read_s += was_read - began
            self._pack_s += time.perf_counter() - was_read
        return packed

    def _num_bytes(self, layer: int, expert: int) -> int:
        return sum(self._source.num_bytes(name) for name in expert_names(layer, expert))

    def _arena(self) -> Arena:
        """Return room for one expert. Where the kernel needs less, or wants none, it is never taken."""
        return Arena(expert_room(self._source.config, self._kernel.bytes_per_weight(self._dtype)))


def expert_room(config: ModelConfig, bytes_per_weight: float) -> int:
    """Return the bytes that an expert's matrices take in an arena, all layers together."""
    num_layers = len(config.moe_layers)
    num_weights = 3 * config.hidden_size * config.expert_width * num_layers
    return int(num_weights * bytes_per_weight) + num_layers * _MATRICES * _GAP_BYTES


def _take(reading: deque[Future[Mlp]]) -> Mlp:
    """Return the next result and forget it: what is held is held by whoever takes it."""
    return reading.popleft().result()
