"""What a plan needs and this version of Herd does not have: told, so that nobody takes a plan for a promise."""

from __future__ import annotations

import typing
from collections.abc import Iterator

from cluster.config import QuantizeName
from cluster.planner.placement import Shape
from cluster.planner.question import Question

_PUBLISHED = {
    ("scout", "fp8"): "by others than Meta only (compressed-tensors)",
    ("scout", "int8"): "not by Meta",
    ("scout", "int4"): "by others than Meta only (w4a16, compressed-tensors)",
    ("maverick", "fp8"): "by Meta: meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8, routed experts only",
    ("maverick", "int8"): "not by Meta",
    ("maverick", "int4"): "by others than Meta only (w4a16, compressed-tensors)",
}
"""Where weights in a form are published."""


def missing(question: Question, shape: Shape) -> Iterator[str]:
    """Yield what this version cannot do of a plan."""
    if not question.fleet.device.is_cpu:
        yield "GPUs: this version computes on CPUs; its kernels for GPUs are to come"
    if question.weights not in ("fp32", "bf16", *typing.get_args(QuantizeName)):
        yield f"weights in {question.weights}: this version rounds to {' or '.join(typing.get_args(QuantizeName))} only"
    elif question.weights == "int4" and not question.fleet.device.is_cpu:
        yield "int4 in groups of 128: this version rounds in groups of 32, 5 bits a weight with their scales"
    if shape.is_local:
        yield "experts in the router's own process: the engine has it, the deployment's settings do not"
    if shape.shards:
        yield "context shards in a deployment: routers and shards know each other, the deployment's settings do not"


def published(question: Question) -> str | None:
    """Return where the weights are to be had in the form that was asked for; None: nothing to say."""
    where = _PUBLISHED.get((question.model_name, question.weights))
    return None if where is None else f"{question.model_name} in {question.weights} is published {where}"
