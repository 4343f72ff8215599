"""The search for the best placement that holds what is asked, and its result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from cluster.planner.assumptions import CPU_STEP_TOKENS, STEP_TOKENS
from cluster.planner.memory import Memory
from cluster.planner.placement import Placement, place, shapes
from cluster.planner.question import Question
from cluster.planner.roofline import Duration, Roofline


@dataclass(frozen=True)
class CapacityPlan:
    """A placement, its bytes and its speed."""

    question: Question
    memory: Memory

    @property
    def placement(self) -> Placement:
        """Return which process is on which device."""
        return self.memory.placement

    @property
    def num_front_doors(self) -> int:
        """Return the front doors: one per node of GPUs, on its processors; one on a machine without."""
        return 1 if self.question.fleet.device.is_cpu else self.question.fleet.nodes

    @cached_property
    def step(self) -> Duration:
        """Return a decoding step with everything that was asked for."""
        return Roofline(self.memory).decode(self.question.context, self.question.concurrency)

    @cached_property
    def lone_step(self) -> Duration:
        """Return a decoding step with one sequence."""
        return Roofline(self.memory).decode(self.question.context, 1)

    @cached_property
    def prompt(self) -> Duration:
        """Return the reading of a prompt of the whole context."""
        return Roofline(self.memory).prefill(self.question.context)

    @property
    def tokens_per_s(self) -> float:
        """Return the tokens per second of all sequences."""
        return self.question.concurrency / self.step.seconds


def candidates(question: Question) -> Iterator[CapacityPlan]:
    """Yield a plan for each shape whose weights fit."""
    step_tokens = int((CPU_STEP_TOKENS if question.fleet.device.is_cpu else STEP_TOKENS).value)
    most_experts = int(question.fleet.device.memory_bytes) // max(question.model_bytes.expert, 1)
    found = shapes(question.fleet, question.config, copies=question.copies, most_experts=most_experts)
    for shape in dict.fromkeys(found):
        placement = place(shape, question.fleet, question.config)
        if placement is None:
            continue
        memory = Memory(question, placement, max(step_tokens, -(-question.concurrency // shape.routers)))
        if memory.fits_weights:
            yield CapacityPlan(question, memory)


def best_plan(question: Question) -> CapacityPlan | None:
    """Return the plan that holds what is asked and is fastest at it; None: nothing holds it.

    Processes share a device only where nothing else holds what is asked: they would take turns. Of plans that are as
    fast, to a percent, the one with more replicas of each expert, then with fewer shards, then with larger groups.
    """
    holding = [plan for plan in candidates(question) if plan.memory.fits(question.context, question.concurrency)]
    holding = [plan for plan in holding if not plan.placement.is_shared] or holding
    if not holding:
        return None
    fastest = max(plan.tokens_per_s for plan in holding)
    return max((plan for plan in holding if plan.tokens_per_s >= 0.99 * fastest), key=_preference)


def _preference(plan: CapacityPlan) -> tuple[float, ...]:
    shape = plan.placement.shape
    return (shape.copies, -shape.shards, -shape.groups, plan.tokens_per_s)
