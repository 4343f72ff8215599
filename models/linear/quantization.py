"""Weights in 8 or 4 bits: how the numbers are chosen. How they are multiplied: `int8`, `int4`, `dequantized`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from models.arena import Arena

Quantization = Literal["int8", "int4", "fp8"]
"""int8: one scale for each output. int4: a scale and a zero for each group of `INT4_GROUP` inputs of an output; on a
GPU a scale for each 128 (`models.gpu.weight`). fp8, on a GPU: e4m3, one scale for each output."""

BITS_PER_WEIGHT: dict[Quantization, int] = {"int8": 8, "int4": 5, "fp8": 8}
"""On a CPU, with int4's scales and zeros; int8's are few."""

INT8_LEVELS = 127
INT4_GROUP = 32
"""Inputs that share a scale; the last group is filled up with zeros. A scale and a zero add 1 bit to each weight."""

_Kind = TypeVar("_Kind")
_own = threading.local()
_CODES = 16
_MIDDLE = 8
# Weights rounded at once: what rounding needs of them stays in a core's cache, 1.7 times faster than 2**21.
_PART_NUMEL = 2**17
# On a GPU, where every part is some launches.
_GPU_PART_NUMEL = 2**22
# Shares of a group's range that the 16 codes are tried on: narrower ones clip the outermost weights.
_RANGES = (1.0, 0.92, 0.84, 0.76)


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """codes · scale.

    `codes_OI` is [O, I] int8 in -127..127, `scale_O` [O] float32.
    """

    codes_OI: Tensor
    scale_O: Tensor

    def dequantized(self) -> Tensor:
        """Return the weight [O, I] float32 that is computed with."""
        return self.codes_OI * self.scale_O[:, None]


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """(codes - 8) · scale + zero, group by group.

    `codes_OI` is [O, I'] uint8 in 0..15, where I' is I rounded up to whole groups; `scale` and `zero` are
    [O, I' / INT4_GROUP] bfloat16; `num_inputs` is I.
    """

    codes_OI: Tensor
    scale: Tensor
    zero: Tensor
    num_inputs: int

    def dequantized(self) -> Tensor:
        """Return the weight [O, I] float32 that is computed with."""
        groups: Tensor = self.codes_OI.float().sub_(_MIDDLE).unflatten(1, (-1, INT4_GROUP))
        weight_OI = groups.mul_(self.scale.float()[..., None]).add_(self.zero.float()[..., None]).flatten(1)
        return weight_OI[:, : self.num_inputs]


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """values · scale.

    `values_OI` is [O, I] float8_e4m3fn, `scale_O` [O] float32.
    """

    values_OI: Tensor
    scale_O: Tensor

    def dequantized(self) -> Tensor:
        """Return the weight [O, I] float32 that is computed with."""
        return self.values_OI.float().mul_(self.scale_O[:, None])


Rounded = Int8Weight | Int4Weight | Fp8Weight
"""A weight whose codes are known."""


def symmetric_int4(codes_OI: Tensor, scale_OG: Tensor) -> Int4Weight:
    """Return a weight that was rounded elsewhere, without zeros: as it is, but for scales in bfloat16.

    Args:
        codes_OI: [O, I] uint8 in 0..15, of which 8 means zero.
        scale_OG: [O, G], for groups of I / G inputs, a multiple of `INT4_GROUP`.
    """
    repeats = codes_OI.shape[1] // scale_OG.shape[1] // INT4_GROUP
    scale = scale_OG.bfloat16().repeat_interleave(repeats, dim=1)
    return Int4Weight(codes_OI, scale, torch.zeros_like(scale), codes_OI.shape[1])


def join_rounded(weights: Sequence[Tensor | Rounded]) -> Rounded | None:
    """Return weights of the same inputs as one, the first one's outputs first; None: not all are codes of one kind."""
    if len(weights) == 1:
        return None if isinstance(weights[0], Tensor) else weights[0]
    if int4s := _all_of(Int4Weight, weights):
        codes, scales, zeros = (
            torch.cat(each) for each in zip(*((each.codes_OI, each.scale, each.zero) for each in int4s), strict=True)
        )
        return Int4Weight(codes, scales, zeros, int4s[0].num_inputs)
    if fp8s := _all_of(Fp8Weight, weights):
        return Fp8Weight(torch.cat([each.values_OI for each in fp8s]), torch.cat([each.scale_O for each in fp8s]))
    if int8s := _all_of(Int8Weight, weights):
        return Int8Weight(torch.cat([each.codes_OI for each in int8s]), torch.cat([each.scale_O for each in int8s]))
    return None


def _all_of(kind: type[_Kind], weights: Sequence[Tensor | Rounded]) -> list[_Kind]:
    """Return the weights if all are of a kind; else nothing."""
    found: list[_Kind] = [each for each in weights if isinstance(each, kind)]
    return found if len(found) == len(weights) else []


def quantize_int8(weight_OI: Tensor, codes_OI: Tensor | None = None) -> Int8Weight:
    """Round each output's weights to 255 even steps, the largest of them being the last step.

    Args:
        weight_OI: [O, I], with any strides.
        codes_OI: [O, I] int8, where to put the codes; None: new memory.

    Cost: on a CPU, a weight that does not lie by rows is copied first, which takes less than rounding across rows
    would, into memory that this thread keeps for the next one.
    """
    rows_OI = _by_rows(weight_OI)
    codes_OI = torch.empty(rows_OI.shape, dtype=torch.int8, device=rows_OI.device) if codes_OI is None else codes_OI
    scale_O = torch.empty(rows_OI.shape[0], dtype=torch.float32, device=rows_OI.device)
    num_rows = max(1, (_PART_NUMEL if rows_OI.device.type == "cpu" else _GPU_PART_NUMEL) // rows_OI.shape[1])
    for part_OI, part_codes_OI, part_scale_O in zip(
        rows_OI.split(num_rows), codes_OI.split(num_rows), scale_O.split(num_rows), strict=True
    ):
        _round_int8(part_OI.float(), part_codes_OI, part_scale_O)
    return Int8Weight(codes_OI, scale_O)


def quantize_int4(weight_OI: Tensor) -> Int4Weight:
    """Round each group's weights to 16 even steps with the least squared error found.

    Tries a few ranges narrower than the group's own, fits scale and zero to the codes of each by least squares, and
    keeps the best. Cost: 40 ns for each weight on one core, at load: half a minute for 790 million.
    """
    parts = [_round_int4(part_OI.float()) for part_OI in _parts(weight_OI)]
    codes, scales, zeros = zip(*parts, strict=True)
    return Int4Weight(torch.cat(codes), torch.cat(scales), torch.cat(zeros), weight_OI.shape[1])


def _by_rows(weight_OI: Tensor) -> Tensor:
    """Return a weight of a CPU by rows, until this thread calls again: new memory would cost more than the copy."""
    if weight_OI.is_contiguous() or weight_OI.device.type != "cpu":
        return weight_OI
    if not hasattr(_own, "memory"):
        _own.memory = Arena()
    memory: Arena = _own.memory
    memory.clear()
    return memory.empty(weight_OI.shape, weight_OI.dtype).copy_(weight_OI)


def _parts(weight_OI: Tensor) -> tuple[Tensor, ...]:
    """Split a weight by outputs, so that what rounding needs besides it stays small."""
    parts: tuple[Tensor, ...] = weight_OI.split(max(1, _PART_NUMEL // weight_OI.shape[1]))
    return parts


def _round_int8(weight_OI: Tensor, codes_OI: Tensor, scale_O: Tensor) -> None:
    """Fill in the codes and the scale of each output of a float32 weight."""
    largest_O = weight_OI.abs().amax(1).clamp_min_(torch.finfo(torch.float32).tiny)
    torch.div(largest_O, INT8_LEVELS, out=scale_O)
    codes_OI.copy_((weight_OI / scale_O[:, None]).round_())


def _round_int4(weight_OI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    groups = F.pad(weight_OI, (0, -weight_OI.shape[1] % INT4_GROUP)).unflatten(1, (-1, INT4_GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    best = _fit_range(groups, low, high)
    for share in _RANGES[1:]:
        found = _fit_range(groups, low * share, high * share)
        best = tuple(torch.where(found[3] < best[3], new, old) for new, old in zip(found, best, strict=True))
    codes, scale, zero, _ = best
    return codes.to(torch.uint8).flatten(1), scale[..., 0].bfloat16(), zero[..., 0].bfloat16()


def _fit_range(groups: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
    """Return codes, scale, zero and squared error of groups [O, groups, INT4_GROUP] put into a range each."""
    scale = _rounded((high - low) / (_CODES - 1)).clamp_min_(torch.finfo(torch.bfloat16).tiny)
    codes = _nearest_codes(groups, scale, _rounded(low + _MIDDLE * scale))
    # Least squares of groups ~ (codes - 8) · scale + zero, for these codes.
    mean_code, mean_weight = codes.mean(-1, keepdim=True), groups.mean(-1, keepdim=True)
    covariance = ((codes - mean_code) * groups).mean(-1, keepdim=True)
    variance = (codes - mean_code).square_().mean(-1, keepdim=True)
    scale = torch.where(variance > 0, _rounded(covariance / variance.clamp_min(1e-6)), scale)
    scale = scale.clamp_min_(torch.finfo(torch.bfloat16).tiny)
    zero = _rounded(mean_weight - (mean_code - _MIDDLE) * scale)
    codes = _nearest_codes(groups, scale, zero)
    error = ((codes - _MIDDLE) * scale + zero - groups).square_().sum(-1, keepdim=True)
    return codes, scale, zero, error


def _nearest_codes(groups: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return ((groups - zero) / scale).round_().add_(_MIDDLE).clamp_(0, _CODES - 1)


def _rounded(values: Tensor) -> Tensor:
    """Return values as bfloat16 will keep them, in float32, so that codes make up for the rounding."""
    return values.bfloat16().float()
