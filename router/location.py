"""Where a process runs, and how far apart two are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """A machine and what it belongs to."""

    machine: str = ""
    """Its name; empty: not known."""
    domains: tuple[str, ...] = ()
    """What it shares with others, narrowest first, such as NVLink domain and zone; an empty one is not known."""

    def distance_to(self, other: Location) -> int:
        """Return 0 on one machine, then the place of the first domain in common, from 1; without one, past all."""
        if self.machine and self.machine == other.machine:
            return 0
        shared = (i for i, pair in enumerate(zip(self.domains, other.domains, strict=False), 1) if _are_same(*pair))
        return next(shared, max(len(self.domains), len(other.domains)) + 1)

    def is_far_from(self, other: Location) -> bool:
        """Tell whether the two are known to be in different domains of the widest kind."""
        return (
            self.machine != other.machine
            and all(each.domains and each.domains[-1] for each in (self, other))
            and self.domains[-1] != other.domains[-1]
        )


def _are_same(one: str, other: str) -> bool:
    return bool(one) and one == other
