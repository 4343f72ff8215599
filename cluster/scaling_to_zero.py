"""Whether a deployment's last replica goes, and when the first one comes back. Pure functions.

    no sequence anywhere for `zero_after_s` --> the last replica goes
    a sequence at any front door            --> there is one again
    a front door unknown                    --> what there is stays

What replicas do themselves cannot tell: there are none to ask, and one that computes nothing at this moment may have
sequences that wait. Front doors know every sequence from its arrival to its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.scaling_needs import FrontDoorStats


@dataclass(frozen=True, kw_only=True, slots=True)
class Activity:
    """What all front doors together have to do."""

    sequences: float
    """Sequences in flight, at those that are known."""
    idle_s: float | None
    """Seconds since any of them had a sequence; None: one is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Activities:
    """The same by length class."""

    standard: Activity
    """Of all requests but long ones, which is all of them where there is no pool for those."""
    long: Activity
    """Of long ones."""

    @property
    def any(self) -> Activity:
        """Return that of both together: it keeps what both use."""
        known = self.standard.idle_s is not None and self.long.idle_s is not None
        return Activity(
            sequences=self.standard.sequences + self.long.sequences,
            idle_s=min(self.standard.idle_s or 0.0, self.long.idle_s or 0.0) if known else None,
        )


def activities_of(doors: Sequence[FrontDoorStats | None], stale_s: float, now: float) -> Activities:
    """Return what front doors say together.

    Args:
        doors: the newest report of each; None: it has not reported.
        stale_s: seconds after which a report is old.
        now: on the clock of the reports.
    """
    known = [each for each in doors if each is not None and now - each.at_s <= stale_s]
    is_whole = bool(doors) and len(known) == len(doors)
    return Activities(
        standard=Activity(
            sequences=sum(each.sequences for each in known),
            idle_s=min(each.idle_s for each in known) if is_whole else None,
        ),
        long=Activity(
            sequences=sum(each.long_sequences for each in known),
            idle_s=min(each.long_idle_s for each in known) if is_whole else None,
        ),
    )


def last_replica(wanted: int, present: int, activity: Activity | None, zero_after_s: float) -> int:
    """Return how many replicas a deployment that may have none should have.

    Args:
        wanted: as `decide` found, which never goes below one.
        present: replicas there should be by the last decision.
        activity: None: no front door was heard.
        zero_after_s: seconds without a sequence before the last replica goes.
    """
    is_busy = activity is not None and activity.sequences > 0
    if not present:
        return 1 if is_busy else 0
    if wanted > 1 or is_busy or activity is None or activity.idle_s is None or activity.idle_s < zero_after_s:
        return wanted
    return 0
