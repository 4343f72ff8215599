"""What a plan needs and this version of Herd does not have: told, so that nobody takes a plan for a promise."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.planner.capacity_plan import CapacityPlan
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


def missing(plan: CapacityPlan) -> Iterator[str]:
    """Yield what this version does not do of a plan that its settings can say."""
    if plan.question.fleet.nodes > 1:
        yield "several machines: herd serve runs on the one it is started on"
    yield from undeployable(plan)


def undeployable(plan: CapacityPlan) -> Iterator[str]:
    """Yield what it does not do on a cluster either."""
    if plan.question.fleet.device.is_cpu:
        return
    if plan.placement.is_shared:
        yield "processes that share a GPU: each takes one of its own"
    if plan.placement.shape.shards:
        yield "context shards beside routers on GPUs: they go with routers on CPUs"


def published(question: Question) -> str | None:
    """Return where the weights are to be had in the form that was asked for; None: nothing to say."""
    where = _PUBLISHED.get((question.model_name, question.weights))
    return None if where is None else f"{question.model_name} in {question.weights} is published {where}"
