"""Counts the bytes of tensors that live at once, of those that torch makes while somebody watches."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Watches what operators return, views and temporaries of their parts included, until the `with` ends."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        """Bytes that lived at once, at most."""
        self._live = 0
        self._tensors: Counter[int] = Counter()
        """Tensors that share a storage, by its address."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Spare this process the second that importing torch's compiler takes: nothing here is compiled."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count what it returns."""
        given = {_address(each) for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            # What was there before is not counted, nor are views of it.
            if isinstance(each, torch.Tensor) and (_address(each) not in given or self._tensors[_address(each)]):
                self._count(each)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        address, num_bytes = _address(tensor), tensor.untyped_storage().nbytes()
        if not self._tensors[address]:
            self._live += num_bytes
            self.most = max(self.most, self._live)
        self._tensors[address] += 1
        weakref.finalize(tensor, self._forget, address, num_bytes)

    def _forget(self, address: int, num_bytes: int) -> None:
        self._tensors[address] -= 1
        if not self._tensors[address]:
            self._live -= num_bytes


class Handed:
    """Counts the bytes of tensors that were handed out and live still."""

    def __init__(self) -> None:
        self.most = 0
        """Bytes that lived at once, at most."""
        self._live = 0

    def out(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count a tensor for as long as somebody has it, and return it."""
        self._live += tensor.nbytes
        self.most = max(self.most, self._live)
        weakref.finalize(tensor, self._forget, tensor.nbytes)
        return tensor

    def _forget(self, num_bytes: int) -> None:
        self._live -= num_bytes


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
