"""The settings of scaling, and what they mean for one deployment."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.autoscaling import Bounds, Pace
from cluster.scaling_needs import Targets
from cluster.setting_checks import check_floor, check_seconds
from protos.errors import BadConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingSettings:
    """How many replicas there may be. A deployment whose maximum is not above its minimum keeps its number."""

    front_door_min_replicas: int = 1
    """Front doors there are at first; at least 1. All listen on the same ports; clients of one that dies connect again
    and meet another."""
    front_door_max_replicas: int | None = None
    """Most front doors; at least the fewest. None goes while Herd runs: its clients are its own. None: the fewest."""
    router_min_replicas: int | None = None
    """Fewest routers; at least 0: then the last one goes after `zero_after_s`. None: `router.replicas`."""
    router_max_replicas: int | None = None
    """Most routers; at least the fewest. None: `router.replicas`."""
    experts_min_replicas: int | None = None
    """Fewest replicas of each expert group; at least 0, likewise. None: `experts.replicas_per_group`."""
    experts_max_replicas: int | None = None
    """Most replicas of each expert group; at least the fewest. None: `experts.replicas_per_group`."""
    budget: int | None = None
    """Most routers, expert replicas and context shards together, shared out by need; at least as many as there are at
    first. None: what the maxima add up to."""
    router_use: float = 0.7
    """Part of KV, slots and prompt tokens/s that routers aim at; above 0, at most 0.85. Smaller: more routers."""
    experts_use: float = 0.6
    """Part of their time that expert replicas aim to compute; above 0, at most 0.85. Smaller: more replicas."""
    ttft_s: float = 2.0
    """Seconds to the first token above which there are too few routers; positive."""
    down_after_s: float = 60.0
    """Seconds that fewer replicas must have been enough before one goes; positive."""
    zero_after_s: float = 300.0
    """Seconds without any request before the last router and the last replica of each group go, where the fewest are 0;
    positive. The next request waits for them to start again."""

    def check(self) -> None:
        """Refuse values that cannot work.

        Raises:
            BadConfig: a value is out of range.
        """
        for name in (
            "front_door_min_replicas",
            "front_door_max_replicas",
            "router_max_replicas",
            "experts_max_replicas",
            "budget",
        ):
            check_floor(f"scaling.{name}", getattr(self, name), 1)
        for name in ("router_min_replicas", "experts_min_replicas"):
            check_floor(f"scaling.{name}", getattr(self, name), 0)
        for name in ("router_use", "experts_use"):
            if not 0 < getattr(self, name) <= 0.85:
                raise BadConfig(f"scaling.{name}: expected above 0 and at most 0.85, found {getattr(self, name):g}")
        for name in ("ttft_s", "down_after_s", "zero_after_s"):
            check_seconds(f"scaling.{name}", getattr(self, name))

    @property
    def targets(self) -> Targets:
        """Return what replicas are measured against."""
        return Targets(ttft_s=self.ttft_s, backlog_s=self.ttft_s / 2)

    def front_doors(self) -> Bounds:
        """Return how many front doors there may be."""
        return bounds_around("scaling.front_door_", self.front_door_min_replicas, None, self.front_door_max_replicas)

    def routers(self, replicas: int) -> Bounds:
        """Return how many routers there may be, `replicas` being `router.replicas`."""
        return bounds_around("scaling.router_", replicas, self.router_min_replicas, self.router_max_replicas)

    def experts(self, replicas: int) -> Bounds:
        """Return how many replicas a group may have, `replicas` being `experts.replicas_per_group`."""
        return bounds_around("scaling.experts_", replicas, self.experts_min_replicas, self.experts_max_replicas)

    def pace(self, use: float) -> Pace:
        """Return the marks around the part of the capacity to aim at."""
        return Pace(high=use * 1.15, aim=use, low=use * 0.85, down_after_s=self.down_after_s)


def bounds_around(prefix: str, replicas: int, least: int | None, most: int | None) -> Bounds:
    """Return bounds that hold the number there is at first.

    Args:
        prefix: of the settings' names.
        replicas: there are at first.
        least: None: as many.
        most: None: as many.

    Raises:
        BadConfig: they do not.
    """
    bounds = Bounds(min_replicas=replicas if least is None else least, max_replicas=replicas if most is None else most)
    if not bounds.min_replicas <= replicas <= bounds.max_replicas:
        raise BadConfig(
            f"{prefix}min_replicas, {prefix}max_replicas: expected bounds around the {replicas} there are at first, "
            f"found {bounds.min_replicas} and {bounds.max_replicas}; move them"
        )
    return bounds
