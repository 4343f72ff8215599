"""The kernels, called with tensors: bfloat16, contiguous, on the CPU; the caller sees to it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import addressof, c_long, c_void_p

import torch
from torch import Tensor

from models.cpu.library import loaded_library
from models.cpu.threads import num_kernel_threads
from models.cpu.weight import Weight


class InputStruct(ctypes.Structure):
    """Tokens, and where to put them rounded to int8."""

    _fields_ = (("rows", c_void_p), ("codes", c_void_p), ("scale", c_void_p), ("width", c_long))


class _Linear(ctypes.Structure):
    _fields_ = (("weight", c_void_p), ("x", InputStruct), ("out", c_void_p), ("num_tokens", c_long))


class _Expert(ctypes.Structure):
    _fields_ = (("gate_up", c_void_p), ("down", c_void_p), ("num_tokens", c_long))


class _Experts(ctypes.Structure):
    _fields_ = (
        ("experts", c_void_p),
        ("num_experts", c_long),
        ("num_tokens", c_long),
        ("x", InputStruct),
        ("mixed", InputStruct),
        ("out", c_void_p),
    )


class Input:
    """Tokens that are multiplied by a weight, with room for what the kernels make of them.

    Args:
        rows_TI: [T, I] bfloat16.
        weight: what they are multiplied by.
    """

    def __init__(self, rows_TI: Tensor, weight: Weight) -> None:
        num_tokens, width = rows_TI.shape
        assert width == weight.width, f"rows of {width} numbers for a weight of {weight.width}"
        self._rows_TI = rows_TI
        self._codes_TI = torch.empty(num_tokens, width, dtype=torch.uint8) if weight.is_int8 else None
        self._scale_T = torch.empty(num_tokens) if weight.is_int8 else None
        codes, scale = (None if each is None else each.data_ptr() for each in (self._codes_TI, self._scale_T))
        self.struct = InputStruct(rows_TI.data_ptr(), codes, scale, width)
        """Names the memory of this object: alive as long as it is."""


def linear(weight: Weight, x_TI: Tensor) -> Tensor:
    """Return x · weightᵀ, [T, O]."""
    num_tokens = x_TI.shape[0]
    out_TO = x_TI.new_empty(num_tokens, weight.height)
    x = Input(x_TI, weight)
    job = _Linear(weight.address, x.struct, out_TO.data_ptr(), num_tokens)
    loaded_library().herd_linear(addressof(job), num_kernel_threads())
    return out_TO


def swiglu(experts: Sequence[tuple[Weight, Weight]], token_counts: Sequence[int], x_ND: Tensor) -> Tensor:
    """Return down(silu(gate(x)) * up(x)) of tokens sorted by expert, [N, D].

    Args:
        experts: (gate and up [2F, D], the gate's rows first, down [D, F]) of each, all of one kind.
        token_counts: rows of each; zeros are legal.
        x_ND: [N, D].
    """
    gate_up, down = experts[0]
    num_tokens = x_ND.shape[0]
    out_ND = torch.empty_like(x_ND)
    x, mixed = Input(x_ND, gate_up), Input(x_ND.new_empty(num_tokens, down.width), down)
    described = zip(experts, token_counts, strict=True)
    table = (_Expert * len(experts))(
        *(_Expert(gate_up.address, down.address, count) for (gate_up, down), count in described)
    )
    job = _Experts(addressof(table), len(experts), num_tokens, x.struct, mixed.struct, out_ND.data_ptr())
    loaded_library().herd_experts(addressof(job), num_kernel_threads())
    return out_ND
