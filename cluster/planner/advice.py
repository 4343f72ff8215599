"""Why nothing holds what is asked, and the ways out: each of them tried, none of them guessed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from cluster.planner.capacity_plan import CapacityPlan, best_plan, candidates
from cluster.planner.hardware import MOST_DEVICES
from cluster.planner.question import Question
from cluster.planner.weight_form import WeightFormat
from protos.errors import NotEnoughMemory

_SMALLER: dict[WeightFormat, tuple[WeightFormat, ...]] = {
    "fp32": ("bf16", "int8", "int4"),
    "bf16": ("fp8", "int8", "int4"),
    "fp8": ("int8", "int4"),
    "int8": ("int4",),
}


def plan_or_refuse(question: Question) -> CapacityPlan:
    """Return the best plan.

    Raises:
        NotEnoughMemory: nothing holds what is asked; it says why, and what would.
    """
    plan = best_plan(question)
    if plan is not None:
        return plan
    ways = tuple(ways_out(question))
    advice = "; ".join(ways) if ways else "take other GPUs, with more memory"
    raise NotEnoughMemory(f"{_reason(question)}; {advice}", metadata={"ways_out": "\n".join(ways)})


def ways_out(question: Question) -> Iterator[str]:
    """Yield changes of one thing each after which there is a plan, those that cost least first."""
    found = list(candidates(question))
    context = max((plan.memory.longest_context(question.concurrency) for plan in found), default=0)
    if context:
        yield f"--context {context} for {question.concurrency} at once"
    count = max((plan.memory.most_sequences(question.context) for plan in found), default=0)
    if count:
        yield f"--concurrency {count} of {question.context:,} tokens"
    if question.copies > 1 and best_plan(replace(question, copies=1)) is not None:
        yield "--copies 1"
    if question.kv_dtype not in ("fp8", "int8") and best_plan(replace(question, kv_dtype="fp8")) is not None:
        yield "--kv-dtype fp8"
    for weights in _SMALLER.get(question.weights, ()):
        other = replace(question, weights=weights)
        is_refused = question.fleet.device.is_cpu and weights == "fp8"
        if not is_refused and best_plan(other) is not None:
            yield f"--quantize {weights}"
            break
    else:
        yield from _smallest_weights(question)
    yield from _more_devices(question)


def _smallest_weights(question: Question) -> Iterator[str]:
    """Yield the smallest form of weights, with the sequences it leaves room for, where it leaves any."""
    if question.weights != "int4":
        smallest = replace(question, weights="int4")
        count = max((plan.memory.most_sequences(question.context) for plan in candidates(smallest)), default=0)
        if count:
            yield f"--quantize int4 --concurrency {count}"


def _more_devices(question: Question) -> Iterator[str]:
    factor = 2
    while question.fleet.num_devices * factor <= MOST_DEVICES:
        fleet = question.fleet.times(factor)
        plan = best_plan(replace(question, fleet=fleet))
        if plan is not None:
            shards = plan.placement.shape.shards
            yield f"--gpus {fleet.text}" + (f", {shards} of them context shards" if shards else "")
            return
        factor *= 2


def _reason(question: Question) -> str:
    fleet, weights = question.fleet, question.model_bytes
    there = f"{fleet.text} of {_gb(fleet.device.memory_bytes)} each"
    found = list(candidates(question))
    if not found:
        copies = f"{question.copies} copies of each expert, " if question.copies > 1 else ""
        return (
            f"expected room for {question.model_name} in {question.weights}, {copies}"
            f"{_gb(weights.router)} for each router and {_gb(weights.experts * question.copies)} of experts besides "
            f"processes and workspace, found {there}"
        )
    layout = found[0].memory.router_layout
    needed = question.concurrency * layout.sequence_bytes(question.context)
    least = f"{_gb(weights.router)} for each router and {_gb(weights.experts * question.copies)} of experts"
    return (
        f"expected room for {question.concurrency} x {question.context:,} tokens, {_gb(needed)} of keys and values in "
        f"{question.kv_dtype} beside {least}, found {there}"
    )


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
