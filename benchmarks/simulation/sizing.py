"""The sizes and marks that are compared: each system as small as the same SLO lets it be, found by trying."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.simulation.roofline import STRETCH, RouterUnit, Unit, WholeUnit
from benchmarks.simulation.systems import HerdRun, Outcome, Setting, WholeRun, marks
from benchmarks.simulation.workload import Workload
from protos.errors import InvalidRequest

AIMS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4)
"""Parts of the capacity to aim at, cheapest first."""
_MOST = 1 << 14
_SLACK = (1.0, 1.1, 1.25)
"""Routers beyond the fewest that are tried, for they can save expert replicas."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Static:
    """A fixed Herd and what it did."""

    routers: int
    experts: int
    outcome: Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Elastic:
    """A scaled system, the part of its capacity it aims at, and what it did."""

    aim: float
    outcome: Outcome


def smallest(meets: Callable[[int], bool], guess: int, least: int = 1) -> int:
    """Return the smallest number that meets, given that all larger ones do, too.

    Args:
        meets: asked as seldom as possible.
        guess: where to begin.
        least: smallest number there may be.

    Raises:
        InvalidRequest: no number up to 16,384 does.
    """
    low, high = max(guess, least), max(guess, least)
    if meets(high):
        while low > least and meets(low := max(least, min(low - 1, int(low * 0.9)))):
            high = low
        if low == high:
            return least
    else:
        while not meets(high := max(high + 1, int(high * 1.1))):
            low = high
            if high > _MOST:
                raise InvalidRequest(
                    f"expected the SLO to be kept with {_MOST} replicas at most, found it missed; lower the load or "
                    "relax the SLO"
                )
    while high - low > 1:  # low does not meet, high does
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def size_static(setting: Setting, workload: Workload) -> Static:
    """Return the fixed Herd with the fewest GPUs that keeps the SLO."""
    # Deaths among thousands of superfluous replicas would say nothing.
    calm = replace(setting, failures_per_gpu_hour=0.0)

    def enough(routers: int) -> bool:
        return HerdRun(calm, workload, routers=routers, experts=_MOST, pace=None).run().meets(setting.slo)

    def serve(routers: int, experts: int) -> Outcome:
        return HerdRun(setting, workload, routers=routers, experts=experts, pace=None).run()

    unit = RouterUnit(model=setting.model, gpu=setting.gpu)
    fewest = smallest(enough, _busy_units(unit, workload))
    groups = setting.model.groups
    best: Static | None = None
    guess = math.ceil(0.3 * fewest)
    for slack in _SLACK:
        routers = math.ceil(fewest * slack)
        try:
            guess = smallest(lambda count, routers=routers: serve(routers, count).meets(setting.slo), guess, groups)  # type: ignore[misc]
        except InvalidRequest:
            continue
        if best is None or routers + guess < best.routers + best.experts:
            best = Static(routers=routers, experts=guess, outcome=serve(routers, guess))
    if best is None:
        raise InvalidRequest(
            f"expected the SLO to be kept with {fewest} routers and a few more, found it missed; relax the SLO or "
            "lower the failure rate"
        )
    return best


def tune_elastic(setting: Setting, workload: Workload, static: Static) -> Elastic:
    """Return the scaled Herd that aims as high as the SLO lets it; it begins with its part of the static size."""
    part = _first_part(workload)
    routers, experts = (math.ceil(1.2 * part * size) for size in (static.routers, static.experts))
    return _tune(
        setting,
        lambda aim: HerdRun(
            setting, workload, routers=routers, experts=max(experts, setting.model.groups), pace=marks(aim)
        ).run(),
    )


def tune_whole(setting: Setting, workload: Workload) -> Elastic:
    """Return the scaled whole models, tuned alike."""
    calm = replace(setting, failures_per_gpu_hour=0.0)
    unit = WholeUnit(model=setting.model, gpu=setting.gpu)
    fewest = smallest(
        lambda count: WholeRun(calm, workload, replicas=count, pace=None).run().meets(setting.slo),
        _busy_units(unit, workload),
    )
    replicas = math.ceil(1.2 * _first_part(workload) * fewest)
    return _tune(setting, lambda aim: WholeRun(setting, workload, replicas=replicas, pace=marks(aim)).run())


def _tune(setting: Setting, serve: Callable[[float], Outcome]) -> Elastic:
    """Return the first aim that keeps the SLO; if none does, the one that comes nearest."""
    tried = []
    for aim in AIMS:
        tried.append(Elastic(aim=aim, outcome=serve(aim)))
        if tried[-1].outcome.meets(setting.slo):
            return tried[-1]
    return max(tried, key=lambda each: each.outcome.kept)


def _busy_units(unit: Unit, workload: Workload) -> int:
    """Return how many units the busiest five minutes need for their prompts alone: where a search begins."""
    width = max(1, round(300 / workload.step_s))
    tokens = workload.requests * workload.prompt_tokens / workload.step_s
    count = max(1, workload.num_steps // width)
    busiest = max(float(tokens[i * width : (i + 1) * width].mean()) for i in range(count))
    return math.ceil(busiest * unit.prefill_s(float(workload.prompt_tokens.max()), 0.5) / (1 - 1 / STRETCH)) or 1


def _first_part(workload: Workload) -> float:
    """Return the load of the first minutes over the highest, both means of five minutes."""
    width = max(1, round(300 / workload.step_s))
    count = max(1, workload.num_steps // width)
    load = [float(workload.requests[i * width : (i + 1) * width].mean()) for i in range(count)]
    return load[0] / max(*load, 1e-9) if len(load) > 1 else 1.0
