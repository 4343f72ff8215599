"""What a plan needs and this version of Herd does not have: told, so that nobody takes a plan for a promise."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.planner.capacity_plan import CapacityPlan
from cluster.planner.question import Question
from cluster.planner.values import settings, split_known

_WHAT = {
    ("router", "device"): "GPUs: this version computes on CPUs",
    ("experts", "in_router"): "experts in the router's own process: the engine has it, a deployment does not",
}
"""What a setting that is not known means is missing."""
_PUBLISHED = {
    ("scout", "fp8"): "by others than Meta only (compressed-tensors)",
    ("scout", "int8"): "not by Meta",
    ("scout", "int4"): "by others than Meta only (w4a16, compressed-tensors)",
    ("maverick", "fp8"): "by Meta: meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8, routed experts only",
    ("maverick", "int8"): "not by Meta",
    ("maverick", "int4"): "by others than Meta only (w4a16, compressed-tensors)",
}
"""Where weights in a form are published."""


def missing(plan: CapacityPlan) -> Iterator[str]:
    """Yield what this version cannot do of a plan: what its settings cannot say, as cluster/planner/values.py tells."""
    _, unknown = split_known(settings(plan))
    for section, keys in unknown.items():
        yield from (_WHAT[section, key] for key in keys if (section, key) in _WHAT)
    if plan.question.weights == "int4" and not plan.question.fleet.device.is_cpu:
        yield "int4 in groups of 128: this version rounds in groups of 32, 5 bits a weight with their scales"


def published(question: Question) -> str | None:
    """Return where the weights are to be had in the form that was asked for; None: nothing to say."""
    where = _PUBLISHED.get((question.model_name, question.weights))
    return None if where is None else f"{question.model_name} in {question.weights} is published {where}"
