"""How many replicas a deployment should have: a pure function of need, bounds, pace, history and the time.

    needed more for `up_after_s`    --> more at once, at most twice those that run
    needed fewer for `down_after_s` --> one fewer (or a tenth), and the evidence starts anew
    nothing known                   --> what there is stays

What a deployment needs is said in two figures, so that every kind is decided alike. *Demand* is the work of this
moment in replicas that have nothing to spare; it is compared with three marks that lie apart, so that a decision never
asks for its own reversal. *Lateness* is the longest wait over its target: demand cannot exceed what runs, waits can.
`scaling_needs.py` makes both from what replicas report.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from protos.errors import BadConfig

_MOST_GROWTH = 2.0
"""Most times what runs that there may be after a decision."""
_LATE_GROWTH = 1.5
"""Most times what runs that waits ask for: how late something is says little of how many are missing."""
CALM = 0.5
"""Lateness below which replicas may go."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What a deployment has to do."""

    demand: float
    """Work of this moment, in replicas used in full; 0 is idle."""
    lateness: float = 0.0
    """Longest wait over its target; 1 is at the target, 0 is no wait."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """How many replicas there may be."""

    min_replicas: int = 1
    """At least 0. Whether there are none is not decided here but in `scaling_to_zero.py`: work tells how many there
    should be only while there is one."""
    max_replicas: int = 1
    """At least 1 and `min_replicas`."""

    def check(self, name: str) -> None:
        """Refuse bounds that cannot work.

        Raises:
            BadConfig: they contradict each other.
        """
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise BadConfig(
                f"{name}: expected 0 <= min <= max and 1 <= max, found {self.min_replicas} and {self.max_replicas}; "
                "raise the maximum or lower the minimum"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How soon and how far numbers change."""

    high: float = 0.8
    """Part of the replicas' work beyond which there are too few; at least `aim`."""
    aim: float = 0.7
    """Part that is right after more were added; in (0, 1]."""
    low: float = 0.6
    """Part below which there are too many, counted with one fewer; below `aim`."""
    up_after_s: float = 1.0
    """Seconds that more must have been needed; 0: at once."""
    late_again_s: float = 10.0
    """Seconds after adding replicas in which waits do not ask for still more: those that wait now began before."""
    down_after_s: float = 60.0
    """Seconds without interruption that fewer must have been enough; positive."""
    down_share: float = 0.1
    """Part of the replicas that may go at a time, at least one; in [0, 1)."""

    def check(self) -> None:
        """Refuse marks that would contradict each other.

        Raises:
            BadConfig: they are not in order.
        """
        if not 0 < self.low < self.aim <= self.high <= 1:
            raise BadConfig(
                f"expected 0 < low < aim <= high <= 1, found {self.low:g}, {self.aim:g} and {self.high:g}; move them "
                "apart, or replicas would come and go"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What decisions of one deployment remember."""

    more_since: float | None = None
    """Since when more replicas are needed without interruption."""
    fewer_since: float | None = None
    """Since when fewer are enough without interruption."""
    grew_at: float = -math.inf
    """When replicas were last added."""


def decide(
    need: Need | None, *, present: int, running: int, bounds: Bounds, pace: Pace, history: History, now: float
) -> tuple[int, History]:
    """Return how many replicas a deployment should have.

    Args:
        need: None: not known, so nothing changes.
        present: replicas there should be by the last decision, those that start included.
        running: of them, those that work.
        bounds: the answer lies within; the minimum is at least 1.
        pace: how soon and how far.
        history: as returned last; `History()` at first.
        now: seconds on any clock that does not go back.
    """
    if need is None:
        return _bound(present, bounds), replace(history, fewer_since=None)
    more = _more(need, present, running, bounds, pace, history, now)
    if more > present:
        since = now if history.more_since is None else history.more_since
        if now - since < pace.up_after_s:
            return _bound(present, bounds), replace(history, more_since=since, fewer_since=None)
        return _bound(more, bounds), History(grew_at=now)
    fewer = _fewer(need, present, running, bounds, pace)
    if fewer < present:
        since = now if history.fewer_since is None else history.fewer_since
        if now - since < pace.down_after_s:
            return _bound(present, bounds), replace(history, more_since=None, fewer_since=since)
        return _bound(fewer, bounds), replace(history, more_since=None, fewer_since=None)
    return _bound(present, bounds), replace(history, more_since=None, fewer_since=None)


def _more(need: Need, present: int, running: int, bounds: Bounds, pace: Pace, history: History, now: float) -> int:
    """Return how many replicas are needed, if more than are present; else no more than those."""
    wanted = present
    if need.demand > pace.high * present:
        wanted = math.ceil(need.demand / pace.aim)
    if need.lateness > 1 and now - history.grew_at >= pace.late_again_s:
        wanted = max(wanted, running + 1, math.ceil(running * min(need.lateness, _LATE_GROWTH)))
    # Replicas on their way count as present: what waits for them must not ask for them again.
    most = max(present, math.ceil(_MOST_GROWTH * running), 1)
    return min(wanted, most, bounds.max_replicas)


def _fewer(need: Need, present: int, running: int, bounds: Bounds, pace: Pace) -> int:
    """Return how many replicas are enough, if fewer than are present; else as many."""
    if need.lateness >= CALM:
        return present
    # Experts work while they still load others, and are not asked how much: as much, at most, as those that run.
    demand = need.demand * max(present, running) / max(running, 1)
    left = present - max(1, int(pace.down_share * present))
    # No fewer than what would be added again at once.
    while left < present and demand > pace.low * left:
        left += 1
    return max(left, bounds.min_replicas)


def _bound(num_replicas: int, bounds: Bounds) -> int:
    return max(bounds.min_replicas, min(num_replicas, bounds.max_replicas))
