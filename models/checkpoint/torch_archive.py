"""Reads the directory of a file that torch.save wrote: names, dtypes, shapes and offsets, and not one weight.

Such a file is an uncompressed zip archive with a pickle that describes tensors as views of storages, and one record
per storage. The pickle is read here with an unpickler that knows the few names a state dictionary needs and runs none
of them: it is stricter than `torch.load(weights_only=True)`. That function is not used because it cannot say where in
the file a tensor lies without importing the whole of torch's compiler (435 MB resident, torch 2.13 on x86-64,
2026-11), and because its `mmap=True` maps every shard in full, which a machine smaller than the model may refuse.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pickle
import reprlib
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.checkpoint.stored_tensor import ITEM_BYTES, StoredTensor
from protos.errors import BadCheckpoint

# In bytes; the pickle of a Maverick shard is under 1 MB.
MAX_PICKLE_BYTES = 100_000_000
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_STORAGES = {
    "FloatStorage": "F32",
    "BFloat16Storage": "BF16",
    "HalfStorage": "F16",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
# Dtypes that came after storages lost theirs: torch saves them as bytes and says the dtype beside them.
_LATER_DTYPES = {"float8_e4m3fn": "F8_E4M3"}
_MOST_ITEMS = 2**63


def _refuse(found: str) -> None:
    raise pickle.UnpicklingError(found)


def _refuse_change(*_: object) -> None:
    """Stand in for `__setstate__`: a pickle that changes what was checked when it was made would go round the check."""
    _refuse("a tensor that is changed after it was made")


@dataclass(frozen=True, slots=True)
class _Storage:
    __setstate__ = _refuse_change

    dtype: str
    key: str
    num_items: int


@dataclass(frozen=True, slots=True)
class _View:
    __setstate__ = _refuse_change

    storage: _Storage
    first_item: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


class _Ignored:
    """Stands for what is not a tensor: Meta's files hold byte streams called `_extra_state`."""

    def __new__(cls, *_: object) -> _Ignored:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def read_torch_archive(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a state dictionary saved by torch, by name; values that are no tensors are left out.

    Raises:
        BadCheckpoint: the file cannot be read, is cut short or not such an archive, its pickle asks for anything but
            tensors, or a tensor lies outside of its record.
    """
    try:
        with zipfile.ZipFile(file) as archive, file.open("rb") as stream:
            records = {info.filename: info for info in archive.infolist()}
            root = _check_records(file, records)
            views = _read_views(file, archive.read(f"{root}/data.pkl"))
            offsets = {
                view.storage.key: _record_offset(file, stream, records, root, view.storage) for view in views.values()
            }
    except OSError as error:
        raise BadCheckpoint(f"{file}: expected a readable file, found: {error.strerror}") from error
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, struct.error) as error:
        raise BadCheckpoint(
            f"{file}: expected a complete zip archive as torch.save writes, found: {error}: download the file again"
        ) from error
    return {name: _stored(file, name, view, offsets[view.storage.key]) for name, view in views.items()}


def _check_records(file: Path, records: dict[str, zipfile.ZipInfo]) -> str:
    """Return the archive's top folder after checking that its records can be read in place."""
    roots = [name.removesuffix("/data.pkl") for name in records if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise BadCheckpoint(f"{file}: expected one data.pkl, as torch.save writes, found {len(roots)}")
    packed = [name for name, info in records.items() if info.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise BadCheckpoint(f"{file}: {packed[0]}: expected an uncompressed record, found a compressed one")
    num_bytes = records[f"{roots[0]}/data.pkl"].file_size
    if num_bytes > MAX_PICKLE_BYTES:
        raise BadCheckpoint(f"{file}: expected a data.pkl of at most {MAX_PICKLE_BYTES} bytes, found {num_bytes}")
    return roots[0]


def _record_offset(
    file: Path, stream: io.BufferedReader, records: dict[str, zipfile.ZipInfo], root: str, storage: _Storage
) -> int:
    """Return where in the file a storage's bytes begin, after checking that all of them are there."""
    name = f"{root}/data/{storage.key}"
    expected = storage.num_items * ITEM_BYTES[storage.dtype]
    if name not in records:
        raise BadCheckpoint(f"{file}: expected the record {name}, found none: download the file again")
    if records[name].file_size != expected:
        raise BadCheckpoint(f"{file}: {name}: expected {expected} bytes, found {records[name].file_size}")
    stream.seek(records[name].header_offset)
    magic, name_length, extra_length = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
    if magic != b"PK\x03\x04":
        raise BadCheckpoint(f"{file}: {name}: expected a record's header, found {magic!r}: download the file again")
    offset = records[name].header_offset + _LOCAL_HEADER.size + int(name_length) + int(extra_length)
    if offset + expected > file.stat().st_size:
        raise BadCheckpoint(f"{file}: {name}: expected its bytes inside of the file, found them beyond its end")
    return offset


class _StateUnpickler(pickle._Unpickler):
    """Rebuilds a state dictionary with descriptions in place of tensors; refuses every name it does not need.

    The one in Python: the one in C takes as much memory as a broken file says that values are numbered, 68 GB for one
    wrong byte. 9 ms for 770 tensors. Byte arrays take what they say they will hold before they are read: none are.
    """

    dispatch = pickle._Unpickler.dispatch | {pickle.BYTEARRAY8[0]: lambda _: _refuse("a byte array")}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and name in _LATER_DTYPES:
            return _LATER_DTYPES[name]
        known: dict[tuple[str, str], Any] = {
            ("torch.storage", "UntypedStorage"): "U8",
            ("torch._utils", "_rebuild_tensor_v2"): _view,
            ("torch._utils", "_rebuild_tensor_v3"): _view_of_bytes,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("collections", "OrderedDict"): OrderedDict,
            ("_io", "BytesIO"): _Ignored,
            ("_codecs", "encode"): _Ignored,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name}, which is not part of a state dictionary")
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, num_items = pid
        if kind != "storage" or dtype not in ITEM_BYTES or not _is_count(num_items):
            raise pickle.UnpicklingError(f"a reference {reprlib.repr(pid)} that is no storage")
        return _Storage(dtype, str(key), num_items)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST_ITEMS


def _view(storage: _Storage, first_item: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object) -> _View:
    """Describe a tensor; stands in for torch._utils._rebuild_tensor_v2."""
    counts = (first_item, *shape, *strides)
    if not isinstance(storage, _Storage) or not all(map(_is_count, counts)):
        raise pickle.UnpicklingError("a tensor whose storage, shape or strides are nonsense")
    return _View(storage, first_item, tuple(shape), tuple(strides), storage.dtype)


def _view_of_bytes(
    storage: _Storage, first_item: int, shape: tuple[int, ...], strides: tuple[int, ...], *rest: object
) -> _View:
    """Describe a tensor in a dtype that storages do not have; stands in for torch._utils._rebuild_tensor_v3."""
    _, _, dtype, *_ = rest
    found = _view(storage, first_item, shape, strides)
    if dtype not in _LATER_DTYPES.values() or found.dtype != "U8":
        raise pickle.UnpicklingError(f"a tensor of dtype {reprlib.repr(dtype)} in a storage of {found.dtype}")
    return dataclasses.replace(found, dtype=str(dtype))


def _parameter(data: _View, *_: object) -> _View:
    """Return a parameter's tensor; stands in for torch._utils._rebuild_parameter."""
    return data


def _read_views(file: Path, pickled: bytes) -> dict[str, _View]:
    """Return the tensors a pickle describes.

    Raises:
        BadCheckpoint: it is broken or asks for anything but tensors.
    """
    try:
        state = _StateUnpickler(io.BytesIO(pickled)).load()
    except (pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, LookupError, MemoryError) as error:
        raise BadCheckpoint(
            f"{file}: expected a pickle of named tensors only, found {error}: do not load it"
        ) from error
    except (RecursionError, TypeError, ValueError) as error:
        raise BadCheckpoint(f"{file}: expected a pickle of named tensors, found a broken one ({error})") from error
    if not isinstance(state, dict):
        raise BadCheckpoint(f"{file}: expected a dictionary of named tensors, found a {type(state).__name__}")
    return {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, _View)}


def _stored(file: Path, name: str, view: _View, storage_offset: int) -> StoredTensor:
    """Return where a view lies in the file, after checking that it stays inside of its storage."""
    last = sum((extent - 1) * stride for extent, stride in zip(view.shape, view.strides, strict=False))
    is_empty = 0 in view.shape
    if len(view.shape) != len(view.strides) or (not is_empty and view.first_item + last >= view.storage.num_items):
        raise BadCheckpoint(
            f"{file}: {name}: expected a view inside of its storage of {view.storage.num_items} elements, found shape "
            f"{list(view.shape)} with strides {list(view.strides)} from element {view.first_item}"
        )
    offset = storage_offset + view.first_item * ITEM_BYTES[view.storage.dtype]
    return StoredTensor(name, file, view.dtype, view.shape, offset, _row_stride(view))


def _row_stride(view: _View) -> int | None:
    """Return the elements between rows; None where the view is not made of equally spaced rows."""
    *leading, columns = view.shape or (1,)
    *strides, inner = view.strides or (1,)
    if inner != 1 and columns > 1:
        return None
    if not leading or math.prod(leading) == 1:
        return columns
    expected = row_stride = strides[-1]
    for extent, stride in zip(reversed(leading), reversed(strides), strict=True):
        if extent > 1 and stride != expected:
            return None
        expected = stride * extent
    return row_stride if row_stride >= columns else None
