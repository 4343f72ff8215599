"""Where expert weights come from, and how far reading them is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from models.arena import Arena
from models.config import ModelConfig
from models.linear import Rounded

Progress = Callable[[int, int], None]
"""(bytes read so far, bytes to read in all)."""


class ExpertSource(Protocol):
    """Expert weights by name: `Checkpoint` and `KeptCodes` of models.checkpoint, `PeerSource`.

    Read from several threads at once.
    """

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

    def read(self, name: str, dtype: torch.dtype | None = None, memory: Arena | None = None) -> Tensor | Rounded:
        """Return one tensor by Herd's name for it, converted to `dtype` if given.

        Or its transpose, by rows, rounded already: then both matrices of an expert in a layer are.

        Args:
            name: of it.
            dtype: what to convert it to.
            memory: to read into, where that can be; the result then lasts until the next reading there, and may have
                any strides.
        """
