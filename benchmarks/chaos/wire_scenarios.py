"""What may happen to single messages between a router and an expert replica, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.tampering_proxy import Corrupt, Delay, Drop, Duplicate, Harm, Reorder

EVERY = 29
"""One message of so many is harmed, each way: with eight layers and two replicas, about one step in four each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WireScenario:
    """One kind of harm."""

    name: str
    """As on the command line."""
    summary: str
    """One sentence."""
    harm: Callable[[int], Harm]
    """What is done to the n-th message that something is done to."""


_ALL = (Drop(), Delay(0.05), Duplicate(), Reorder(), Corrupt(0.5))
WIRE_SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        WireScenario(name="wire-drop", summary="dispatches and answers are lost", harm=lambda _: Drop()),
        WireScenario(
            name="wire-delay", summary="dispatches and answers are half a second late", harm=lambda _: Delay(0.5)
        ),
        WireScenario(name="wire-duplicate", summary="dispatches and answers come twice", harm=lambda _: Duplicate()),
        WireScenario(name="wire-reorder", summary="dispatches and answers overtake others", harm=lambda _: Reorder()),
        WireScenario(
            name="wire-corrupt", summary="bits of dispatches and answers flip", harm=lambda n: Corrupt(n * 0.137 % 1)
        ),
        WireScenario(name="wire-all", summary="all of these in turn", harm=lambda n: _ALL[n % len(_ALL)]),
    )
}
