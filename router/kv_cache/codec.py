"""How keys and values are stored: as they are, in another float, or in 8 bits."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from router.kv_cache.layout import KvDtype

_FLOATS: dict[KvDtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_INT8_MOST = 127
_FP8_MOST = torch.finfo(torch.float8_e4m3fn).max


class KvCodec(Protocol):
    """Turns rows of heads into what is stored, and back."""

    @property
    def is_plain(self) -> bool:
        """Tell whether both are the same: one tensor, in the dtype the model computes in."""

    def allocate(self, num_slots: int, heads: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
        """Return empty tensors [slots, G, ...] that hold rows [G, C] = `heads`."""

    def encode(self, rows_TGC: Tensor) -> tuple[Tensor, ...]:
        """Return rows as they are stored, one tensor for each that `allocate` made."""

    def decode(self, *parts: Tensor) -> Tensor:
        """Return stored rows [G, S, ...] as [G, S, C] in the dtype the model computes in."""


def dtype_name(dtype: torch.dtype) -> KvDtype:
    """Return the name of the cache that stores a float dtype as it is."""
    return next(name for name, stored in _FLOATS.items() if stored == dtype)


def choose_codec(kv_dtype: KvDtype, dtype: torch.dtype) -> KvCodec:
    """Return the codec between a stored dtype and the one the model computes in."""
    if kv_dtype == "int8":
        return Int8Codec(dtype)
    if kv_dtype == "fp8":
        return Fp8Codec(dtype)
    return FloatCodec(_FLOATS[kv_dtype], dtype)


class FloatCodec:
    """Stores floats; rounds if they are narrower than what is computed in."""

    def __init__(self, stored: torch.dtype, dtype: torch.dtype) -> None:
        self._stored = stored
        self._dtype = dtype
        self.is_plain = stored == dtype

    def allocate(self, num_slots: int, heads: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
        """Return one tensor [slots, G, C]."""
        return (torch.empty((num_slots, *heads), dtype=self._stored, device=device),)

    def encode(self, rows_TGC: Tensor) -> tuple[Tensor, ...]:
        """Round."""
        return (rows_TGC.to(self._stored),)

    def decode(self, *parts: Tensor) -> Tensor:
        """Widen; a view if both dtypes are the same."""
        return parts[0].to(self._dtype)


class Int8Codec:
    """Stores round(x / scale) with scale = max|x| / 127 of each head's row: an error of at most scale / 2."""

    is_plain = False

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def allocate(self, num_slots: int, heads: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
        """Return integers [slots, G, C] and scales [slots, G] float32."""
        return (
            torch.empty((num_slots, *heads), dtype=torch.int8, device=device),
            torch.empty((num_slots, heads[0]), dtype=torch.float32, device=device),
        )

    def encode(self, rows_TGC: Tensor) -> tuple[Tensor, ...]:
        """Scale and round; a row of zeros keeps a scale of zero."""
        rows32_TGC = rows_TGC.float()
        scales_TG = rows32_TGC.abs().amax(dim=-1) / _INT8_MOST
        integers_TGC = torch.round(rows32_TGC / scales_TG.clamp_min(torch.finfo(torch.float32).tiny)[..., None])
        return integers_TGC.to(torch.int8), scales_TG

    def decode(self, *parts: Tensor) -> Tensor:
        """Multiply by the scales."""
        integers_GSC, scales_GS = parts
        return (integers_GSC * scales_GS[..., None]).to(self._dtype)


class Fp8Codec:
    """Stores e4m3 floats as they are: QK norm bounds keys, and values lie far within ±448; what does not is clamped."""

    is_plain = False

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def allocate(self, num_slots: int, heads: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
        """Return one tensor [slots, G, C] of the floats' bits: torch copies few things by index in this dtype."""
        return (torch.empty((num_slots, *heads), dtype=torch.uint8, device=device),)

    def encode(self, rows_TGC: Tensor) -> tuple[Tensor, ...]:
        """Clamp and round."""
        return (rows_TGC.clamp(-_FP8_MOST, _FP8_MOST).to(torch.float8_e4m3fn).view(torch.uint8),)

    def decode(self, *parts: Tensor) -> Tensor:
        """Widen."""
        return parts[0].view(torch.float8_e4m3fn).to(self._dtype)
