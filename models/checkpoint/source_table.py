"""Stored tensors by name, each checked when a layout asks for it, and a record of those nobody asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from models.checkpoint.stored_tensor import WEIGHT_DTYPES, StoredTensor
from protos.errors import BadCheckpoint


class SourceTable:
    """What one checkpoint, or one shard of it, stores.

    Args:
        tensors: by the name a layout asks with, which may lack a prefix the file has.
        place: folder or file, for messages.
    """

    def __init__(self, tensors: Mapping[str, StoredTensor], place: str) -> None:
        self._tensors = tensors
        self._place = place
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[StoredTensor]:
        return iter(self._tensors.values())

    @property
    def place(self) -> str:
        """Folder or file, for messages."""
        return self._place

    def first_of(self, names: Sequence[str]) -> str:
        """Return the first name that is stored; one thing has several names over the releases."""
        return next((name for name in names if name in self._tensors), names[0])

    def find(self, name: str) -> StoredTensor:
        """Return a stored tensor whose shape is yet to be checked.

        Raises:
            BadCheckpoint: it is missing.
        """
        if name not in self._tensors:
            raise BadCheckpoint(
                f"{self._place}: expected the tensor {name}, found none of that name: the checkpoint is incomplete or "
                "its configuration describes another model"
            )
        return self._tensors[name]

    def take(self, name: str, shape: tuple[int, ...], dtypes: Collection[str] = WEIGHT_DTYPES.keys()) -> StoredTensor:
        """Return a stored tensor that is as the configuration needs it.

        Args:
            name: its name.
            shape: it must have.
            dtypes: it may have, as safetensors names them.

        Raises:
            BadCheckpoint: it is missing, or has another shape, dtype or memory layout.
        """
        tensor = self.find(name)
        where = f"{tensor.file}: {tensor.name}"
        if tensor.shape != shape:
            raise BadCheckpoint(
                f"{where}: expected shape {list(shape)}, as the configuration says, found {list(tensor.shape)}: "
                "weights and configuration are of different models"
            )
        if tensor.dtype not in dtypes:
            raise BadCheckpoint(
                f"{where}: expected a dtype of {sorted(dtypes)}, found {tensor.dtype}: use another release of the model"
            )
        if tensor.row_stride is None:
            raise BadCheckpoint(f"{where}: expected rows of consecutive elements, found a transposed view: save a copy")
        self._taken.add(name)
        return tensor

    def pass_over(self, name: str) -> None:
        """Take note that a tensor is known and says nothing that is not said elsewhere."""
        self._taken.add(name)

    def unused(self) -> list[str]:
        """Return the names nobody took, as the files have them."""
        return sorted(tensor.name for name, tensor in self._tensors.items() if name not in self._taken)
