"""How a matrix of weights is stored, and the bytes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

WeightFormat = Literal["fp32", "bf16", "fp8", "int8", "int4"]
Component = Literal["attention", "shared expert", "dense MLP", "embeddings", "LM head", "gates and norms", "experts"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """One way to store a matrix [outputs, inputs]."""

    name: str
    bits: float
    """Of a weight itself."""
    row_bytes: int = 0
    """Of an output's scale."""
    group: int = 1
    """Inputs that share a scale; inputs are filled up to whole groups."""
    group_bytes: int = 0
    """Of a group's scale, and zero where there is one."""

    def matrix_bytes(self, outputs: int, inputs: int) -> int:
        """Return the bytes of a matrix, scales included."""
        groups = -(-inputs // self.group)
        weights = int(outputs * groups * self.group * self.bits) // 8
        return weights + outputs * (self.row_bytes + groups * self.group_bytes)


FP32 = Form(name="fp32", bits=32)
BF16 = Form(name="bf16", bits=16)
FP8 = Form(name="fp8 e4m3, an fp32 scale per output", bits=8, row_bytes=4)
INT8 = Form(name="int8, an fp32 scale per output", bits=8, row_bytes=4)
INT4_GPU = Form(name="int4, a bf16 scale per 128 inputs", bits=4, group=128, group_bytes=2)
"""As Llama 4's published w4a16 folders have it."""
INT4_CPU = Form(name="int4, a bf16 scale and zero per 32 inputs", bits=4, group=32, group_bytes=4)
"""As `--quantize int4` makes it: models/linear/quantization.py."""


def forms(weights: WeightFormat, *, is_cpu: bool) -> Mapping[Component, Form]:
    """Return the form of every component.

    fp8 is for routed experts alone, as in Meta's own fp8 release of Maverick; `--quantize fp8` rounds the rest too and
    needs less. int8 and int4 are what `--quantize` does: all matrices but the embeddings, and at least 8 bits for
    the LM head.

    Args:
        weights: what was asked for.
        is_cpu: where it is computed: int4 has other groups there, and what is not rounded is fp32.
    """
    plain = FP32 if activation_bytes(weights, is_cpu=is_cpu) == 4 else BF16
    inner = {"int8": INT8, "int4": INT4_CPU if is_cpu else INT4_GPU}.get(weights, plain)
    return {
        "attention": inner,
        "shared expert": inner,
        "dense MLP": inner,
        "embeddings": plain,
        "LM head": INT8 if weights in ("int8", "int4") else plain,
        "gates and norms": plain,
        "experts": FP8 if weights == "fp8" else inner,
    }


def activation_bytes(weights: WeightFormat, *, is_cpu: bool) -> int:
    """Return the bytes of one number that is computed with."""
    return 4 if weights == "fp32" or (is_cpu and weights in ("int8", "int4")) else 2
