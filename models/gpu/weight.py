"""How a weight lies in a GPU's memory: by rows, each output's inputs next to each other, so that a row is read once.

plain   [O, I] in the tokens' dtype
int8    [O, I], one scale for each output
fp8     [O, I] e4m3, one scale for each output
int4    [O, I / 2] bytes and one scale for each group of 128 inputs of an output. Input j of a group is the low half
        of its byte j, input j + 64 the high half: halves are multiplied by 64 inputs next to each other each, and
        nothing is put in another order. Scales lie as [groups, O]: a block of outputs wants one group at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.linear.quantization import INT4_GROUP, Fp8Weight, Int8Weight, Rounded, quantize_int8

Form = Literal["plain", "int8", "fp8", "int4"]

GROUP = 128
"""Inputs of an output that share a scale in four bits."""
_HALF = GROUP // 2
_SMALL_GROUPS = GROUP // INT4_GROUP
_ALIGNMENT = 16
_MIDDLE = 8
_LARGEST_E4M3 = 448.0
# Parts of the largest weight of a group that the code 7 is tried for.
_RANGES = (1.0, 0.92, 0.84, 0.76)
# Weights rounded at once: what that needs in float32 stays below 0.1 GB, less than a layer of Scout's.
_PART_NUMEL = 2**22
# A kernel counts elements of a weight in 32 bits.
_MOST_ELEMENTS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class GpuWeight:
    """A weight [O, I] as the kernels read it; made by the functions below."""

    form: Form
    values: Tensor
    """[O, I] floating, int8 or float8_e4m3fn, or [O, groups · 64] uint8; contiguous."""
    scale: Tensor | None
    """None; [O] float32; or [groups, O] bfloat16."""
    num_inputs: int
    """I."""

    def __post_init__(self) -> None:
        """Check what the kernels take for granted."""
        assert self.values.is_contiguous()
        assert self.values.data_ptr() % _ALIGNMENT == 0, "a row is read 16 bytes at a time"
        if self.num_outputs * self.num_inputs > _MOST_ELEMENTS:
            raise ValueError(
                f"expected at most {_MOST_ELEMENTS} weights in a matrix, found {self.num_outputs} x {self.num_inputs}"
            )

    @property
    def num_outputs(self) -> int:
        """O."""
        return self.values.shape[0]

    @property
    def num_bytes(self) -> int:
        """Bytes of the weight and its scales in memory."""
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def dequantized(self) -> Tensor:
        """Return the weight [O, I] that is computed with: float32, or as it is if it was not rounded."""
        if self.scale is None:
            return self.values
        if self.form != "int4":
            return self.values.float() * self.scale[:, None]
        pairs = self.values.unflatten(1, (-1, _HALF))
        codes = torch.cat((pairs & 15, pairs >> 4), dim=2).float() - _MIDDLE
        return (codes * self.scale.t().float()[:, :, None]).flatten(1)[:, : self.num_inputs]


def plain(weight_OI: Tensor) -> GpuWeight:
    """Keep a weight [O, I] as it is. Cost: a copy unless it lies by rows, and where a row can be read."""
    values_OI = weight_OI.contiguous()
    if values_OI.data_ptr() % _ALIGNMENT:
        values_OI = values_OI.clone()
    return GpuWeight("plain", values_OI, None, weight_OI.shape[1])


def int8(codes_OI: Tensor, scale_O: Tensor) -> GpuWeight:
    """Keep a weight that was rounded elsewhere.

    Args:
        codes_OI: [O, I] int8.
        scale_O: [O], in any floating dtype.
    """
    return _scaled_by_output("int8", codes_OI, scale_O)


def round_int8(weight_OI: Tensor) -> GpuWeight:
    """Round each output's weights [O, I] to 255 even steps, the largest of them being the last step."""
    rounded = quantize_int8(weight_OI)
    return int8(rounded.codes_OI, rounded.scale_O)


def fp8(values_OI: Tensor, scale_O: Tensor) -> GpuWeight:
    """Keep a weight that was rounded elsewhere.

    Args:
        values_OI: [O, I] float8_e4m3fn.
        scale_O: [O], in any floating dtype.
    """
    return _scaled_by_output("fp8", values_OI, scale_O)


def round_fp8(weight_OI: Tensor) -> GpuWeight:
    """Round a weight [O, I] to e4m3, the largest of each output's weights to e4m3's largest number."""
    values_OI = torch.empty(weight_OI.shape, dtype=torch.float8_e4m3fn, device=weight_OI.device)
    scale_O = torch.empty(weight_OI.shape[0], device=weight_OI.device)
    num_rows = _rows_at_once(weight_OI.shape[1])
    parts = (each.split(num_rows) for each in (weight_OI, scale_O, values_OI))
    for part_OI, part_O, out_OI in zip(*parts, strict=True):
        part = part_OI.float()
        part_O.copy_(part.abs().amax(1).clamp_min_(torch.finfo(torch.float32).tiny).div_(_LARGEST_E4M3))
        # A quotient may exceed the largest number by its own rounding, which e4m3 would make a NaN.
        out_OI.copy_((part / part_O[:, None]).clamp_(-_LARGEST_E4M3, _LARGEST_E4M3))
    return fp8(values_OI, scale_O)


def _scaled_by_output(form: Form, values_OI: Tensor, scale_O: Tensor) -> GpuWeight:
    return GpuWeight(form, values_OI.contiguous(), scale_O.float().contiguous(), values_OI.shape[1])


def int4(codes_OI: Tensor, scale_OG: Tensor) -> GpuWeight:
    """Keep a weight that was rounded elsewhere.

    Args:
        codes_OI: [O, I] uint8 in 0..15, of which 8 means zero.
        scale_OG: [O, G] floating, for groups of I / G inputs: `GROUP`, or a multiple of it.
    """
    num_inputs = codes_OI.shape[1]
    group = num_inputs // scale_OG.shape[1]
    if group * scale_OG.shape[1] != num_inputs or group % GROUP:
        raise ValueError(
            f"expected one scale for {GROUP} inputs or a multiple, found {scale_OG.shape[1]} for {num_inputs} inputs"
        )
    scale = scale_OG.bfloat16().repeat_interleave(group // GROUP, dim=1)
    return GpuWeight("int4", _pack(codes_OI), scale.t().contiguous(), num_inputs)


def keep(weight: Rounded, dtype: torch.dtype, device: torch.device) -> GpuWeight | None:
    """Lay a weight that was rounded elsewhere on a device, its codes as they are; None: the kernels read no such codes.

    Args:
        weight: on any device.
        dtype: of the weight before it was rounded; four bits' scales are taken to it.
        device: where to.
    """
    if isinstance(weight, Fp8Weight):
        return fp8(weight.values_OI.to(device), weight.scale_O.to(device))
    if isinstance(weight, Int8Weight):
        return int8(weight.codes_OI.to(device), weight.scale_O.to(device))
    if weight.scale.shape[1] % _SMALL_GROUPS or weight.zero.any():
        return None
    by_group = weight.scale.unflatten(1, (-1, _SMALL_GROUPS))
    if (by_group != by_group[..., :1]).any():
        return None
    codes_OI = weight.codes_OI[:, : weight.num_inputs]
    return int4(codes_OI.to(device), by_group[..., 0].to(dtype).to(device))


def round_weight(weight_OI: Tensor, form: Literal["int8", "fp8", "int4"]) -> GpuWeight:
    """Round a weight [O, I] to a form."""
    return {"int8": round_int8, "fp8": round_fp8, "int4": round_int4}[form](weight_OI)


def round_int4(weight_OI: Tensor) -> GpuWeight:
    """Round each group's weights to 16 even steps around zero, with the least squared error of four ranges tried."""
    num_outputs, num_inputs = weight_OI.shape
    num_groups = -(-num_inputs // GROUP)
    num_rows = _rows_at_once(num_groups * GROUP)
    values = torch.empty(num_outputs, num_groups * _HALF, dtype=torch.uint8, device=weight_OI.device)
    scale = torch.empty(num_groups, num_outputs, dtype=torch.bfloat16, device=weight_OI.device)
    parts = weight_OI.split(num_rows), values.split(num_rows), scale.split(num_rows, dim=1)
    for part_OI, part_values, part_scale in zip(*parts, strict=True):
        pairs, scales = _round_int4(part_OI)
        part_values.copy_(pairs)
        part_scale.copy_(scales)
    return GpuWeight("int4", values, scale, num_inputs)


def _round_int4(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    groups = F.pad(weight_OI.float(), (0, -weight_OI.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    largest = groups.abs().amax(-1, keepdim=True)
    best_error = torch.full_like(largest, torch.inf)
    best_codes, best_scale = torch.zeros_like(groups), torch.zeros_like(largest)
    for share in _RANGES:
        # What is kept of the scale is what codes are chosen for.
        scale = (largest * (share / (_MIDDLE - 1))).bfloat16().float().clamp_min(1e-30)
        codes = (groups / scale).round_().clamp_(-_MIDDLE, _MIDDLE - 1)
        error = (codes * scale - groups).square_().sum(-1, keepdim=True)
        is_better = error < best_error
        best_error = torch.where(is_better, error, best_error)
        best_codes, best_scale = torch.where(is_better, codes, best_codes), torch.where(is_better, scale, best_scale)
    codes_OI = (best_codes + _MIDDLE).to(torch.uint8).flatten(1)
    return _pack(codes_OI), best_scale[..., 0].t().bfloat16()


def _pack(codes_OI: Tensor) -> Tensor:
    """Return codes [O, I] two to a byte, [O, groups · 64] uint8; inputs that the last group lacks are zeros."""
    fill = -codes_OI.shape[1] % GROUP
    codes = F.pad(codes_OI, (0, fill), value=_MIDDLE) if fill else codes_OI
    low, high = codes.unflatten(1, (-1, 2, _HALF)).unbind(2)
    pairs: Tensor = low | (high << 4)
    return pairs.flatten(1).contiguous()


def _rows_at_once(num_inputs: int) -> int:
    return max(1, _PART_NUMEL // num_inputs)
