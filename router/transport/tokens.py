"""A dispatch's tokens, where they were computed and, once something has to travel by way of the host, there."""

from __future__ import annotations

import torch
from torch import Tensor


class Tokens:
    """Tokens on whatever device, copied to the host's memory at most once, however many replicas get some that way.

    Args:
        hidden_ND: [N, D] in the plan's order.
    """

    __slots__ = ("_on_host_ND", "hidden_ND")

    def __init__(self, hidden_ND: Tensor) -> None:
        self.hidden_ND = hidden_ND
        self._on_host_ND = hidden_ND if hidden_ND.device.type == "cpu" else None

    @property
    def on_host_ND(self) -> Tensor:
        """Return them in the host's memory. Cost: from a GPU, the first time, a copy, and a wait for the GPU."""
        if self._on_host_ND is None:
            self._on_host_ND = _to_host(self.hidden_ND)
        return self._on_host_ND

    def near(self, device: torch.device) -> Tensor:
        """Return them where a device's memory is filled from in one copy: on the host for the host's."""
        return self.on_host_ND if device.type == "cpu" else self.hidden_ND


def brought_to(device: torch.device, rows_nD: Tensor) -> Tensor:
    """Return rows on a device, themselves if they are there.

    Does not wait for the copy, and needs not to: from memory that is not page-locked a GPU's driver has taken the rows
    when it returns (CUDA, "API synchronization behavior"), and between GPUs the order of the stream keeps them.
    """
    return rows_nD.to(device, non_blocking=True)


def _to_host(hidden_ND: Tensor) -> Tensor:
    """Copy from a GPU to page-locked memory, which torch keeps for the next time."""
    on_host_ND = torch.empty(hidden_ND.shape, dtype=hidden_ND.dtype, pin_memory=True)
    on_host_ND.copy_(hidden_ND, non_blocking=True)
    torch.cuda.current_stream(hidden_ND.device).synchronize()
    return on_host_ND
