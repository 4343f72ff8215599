"""Memory that something other than torch owns, as a tensor.

Through DLPack (dlpack.h, `DLManagedTensor`, version 0), which torch reads for every kind of device, and which says on
which device the memory is to be used: memory that lies on one card and is mapped into another's context is the other's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

_KINDS = {"cpu": 1, "cuda": 2}
"""DLDeviceType."""
_UNSIGNED = 1
_NAME = b"dltensor"


class _Described(ctypes.Structure):
    """DLTensor of bytes, its device and its dtype written out."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_kind", ctypes.c_int32),
        ("device_index", ctypes.c_int32),
        ("num_dimensions", ctypes.c_int32),
        ("dtype_kind", ctypes.c_uint8),
        ("dtype_bits", ctypes.c_uint8),
        ("dtype_lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (("tensor", _Described), ("manager", ctypes.c_void_p), ("deleter", _Deleter))


def bytes_at(address: int, num_bytes: int, device: torch.device, when_gone: Callable[[], None]) -> Tensor:
    """Return memory as a tensor [num_bytes] uint8 that shares it.

    Args:
        address: of its first byte, in the device's own terms.
        num_bytes: how many.
        device: where it is to be used.
        when_gone: called once, in whatever thread, when neither the tensor nor a view of it is left; must not raise.
    """
    shape = (ctypes.c_int64 * 1)(num_bytes)
    kind = _KINDS[device.type]
    described = _Described(address, kind, device.index or 0, 1, _UNSIGNED, 8, 1, shape, None, 0)
    managed = _Managed(described, None, _FORGET)
    place = ctypes.addressof(managed)
    _IN_USE[place] = (managed, shape, when_gone)
    try:
        return from_dlpack(_new_capsule(place, _NAME, None))
    except BaseException:
        _IN_USE.pop(place, None)
        raise


_IN_USE: dict[int, tuple[object, object, Callable[[], None]]] = {}
"""What torch reads of memory in use, by the address where it reads it."""


def _forget(place: int) -> None:
    *_, when_gone = _IN_USE.pop(place)
    when_gone()


_FORGET = _Deleter(_forget)
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
