"""Expert weights from whoever holds them at the moment, asked anew for each expert; else from files."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from experts.peer_source import PeerSource
from experts.source import ExpertSource
from models.arena import Arena
from models.checkpoint.tensor_shapes import expert_names
from models.config import ModelConfig
from models.linear import Quantization, Rounded
from protos.tls import Identity

FindHolder = Callable[[int], str | None]
"""(logical expert) to the address of a replica that holds it; None: read files."""


class HolderSource:
    """Reads each expert through a `PeerSource` of its own. For several threads.

    A holder with which a fetch failed is not asked again: its experts are read from files.

    Args:
        find_holder: asked once per expert that is read; may block.
        files: the checkpoint, opened here.
        dtype: what weights will be held in.
        quantize: how they will be rounded; None: not at all.
        identity: what to show holders and to believe; None: no encryption.
    """

    def __init__(
        self,
        find_holder: FindHolder,
        files: ExpertSource,
        dtype: torch.dtype,
        quantize: Quantization | None = None,
        identity: Identity | None = None,
    ) -> None:
        self._identity = identity
        self.config: ModelConfig = files.config
        self.fingerprint = files.fingerprint
        self._find_holder = find_holder
        self._files = files
        self._dtype = dtype
        self._quantize = quantize
        names = {
            expert: [name for layer in self.config.moe_layers for name in expert_names(layer, expert)]
            for expert in range(self.config.num_experts)
        }
        self._expert_of = {name: expert for expert, of_it in names.items() for name in of_it}
        self._num_names = 2 * len(self.config.moe_layers)
        self._open: dict[int, ExpertSource] = {}
        self._num_read: dict[int, int] = {}
        self._peers_bytes = 0
        self._failed: set[str] = set()
        self._changing = threading.Lock()

    @property
    def fetched_bytes(self) -> int:
        """Bytes of weights that came from peers, of experts that are complete."""
        return self._peers_bytes

    @property
    def bytes_read(self) -> int:
        """Bytes read so far, from peers and from files."""
        return self._peers_bytes + self._files.bytes_read

    def num_bytes(self, name: str) -> int:
        """Return the bytes of a tensor as it is stored in files; a peer may send fewer or more."""
        return self._files.num_bytes(name)

    def read(self, name: str, dtype: torch.dtype | None = None, memory: Arena | None = None) -> Tensor | Rounded:
        """Return one matrix: from a holder by rows, transposed or already rounded; else as the files have it."""
        expert = self._expert_of[name]
        with self._changing:
            if expert not in self._open:
                self._open[expert] = self._source_of(expert)
                self._num_read[expert] = 0
            source = self._open[expert]
        matrix = source.read(name, dtype, memory)
        self._count(expert, source)
        return matrix

    def _source_of(self, expert: int) -> ExpertSource:
        address = self._find_holder(expert)
        if address is None or address in self._failed:
            return self._files
        return PeerSource(address, self._files, self._dtype, self._quantize, self._identity)

    def _count(self, expert: int, source: ExpertSource) -> None:
        """Take note of a matrix; after an expert's last one its source is not needed any more."""
        with self._changing:
            self._num_read[expert] += 1
            if self._num_read[expert] == self._num_names:
                del self._open[expert], self._num_read[expert]
                if isinstance(source, PeerSource):
                    self._peers_bytes += source.fetched_bytes
                    if source.is_given_up:
                        self._failed.add(source.address)
