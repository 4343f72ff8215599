"""How long everything has that ends in turn when a pod is told to end. Pure.

    SIGTERM                                                                     SIGKILL
    |---- grace: terminationGracePeriodSeconds -----------------------------------|
    |---- drain: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S ------------|
         |---- shutdown: Serve's graceful_shutdown_timeout_s -------|
         |---- lame duck -----|---- longest: limits.drain_s ----|

Each must hold the next, or what is below is cut off. Lame duck is `limits.lame_duck_s`. The chart computes the same
numbers from the same settings (`helm/templates/_drain.tpl`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from protos.errors import BadConfig

DRAIN_VARIABLE = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
"""Of a pod's environment: what Ray gives the replicas of its node when it is told to end."""
RAYS_DRAIN_S = 30.0
"""What it takes without."""
ROUTER_SHUTDOWN_S = 10.0
"""Seconds that a replica's calls have to end when it is stopped, by a redeploy or with fewer replicas; then Ray kills
the process. That is also how long a router's sequences stay: what is unfinished then goes on at another router, which
needs no more of this one than its death. Front doors have longer: their clients are their own."""
_CLOSING_S = 2.0
"""Seconds for a front door to close its ports after its last request."""
_NOTICE_S = 5.0
"""Seconds until Ray Serve has noticed that a node drains, and told its replicas to stop."""
_MARGIN_S = 15.0
"""Seconds for Ray to end its processes after that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DrainTimes:
    """All in seconds."""

    longest_s: float
    """What the longest request that must finish takes: `limits.drain_s`."""
    lame_duck_s: float
    """How long a front door that is stopped takes requests before: `limits.lame_duck_s`."""
    shutdown_s: float
    """What Ray Serve gives a front door it stops."""
    drain_s: float
    """What Ray gives the replicas of a node that is told to end."""
    grace_s: float
    """What Kubernetes gives a pod that is told to end."""

    def check(self) -> None:
        """Refuse times in which something would be cut off.

        Raises:
            BadConfig: one of them does not hold the next.
        """
        if not self.drain_s < self.grace_s:
            raise BadConfig(
                f"terminationGracePeriodSeconds (grace): expected more than RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S "
                f"(drain), {self.drain_s:g} s, found {self.grace_s:g} s: Kubernetes would kill the pod while Ray "
                f"drains it; set grace to {self.drain_s + _MARGIN_S:g}"
            )
        if not self.shutdown_s <= self.drain_s:
            raise BadConfig(
                "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S (drain): expected at least graceful_shutdown_timeout_s of front "
                f"doors (shutdown), {self.shutdown_s:g} s, found {self.drain_s:g} s: Ray would end the node while its "
                f"requests finish; set drain to {self.shutdown_s + _NOTICE_S:g}, or lower limits.drain_s"
            )
        if not self.lame_duck_s + self.longest_s <= self.shutdown_s:
            raise BadConfig(
                "graceful_shutdown_timeout_s (shutdown): expected at least limits.lame_duck_s, "
                f"{self.lame_duck_s:g} s, and the longest request that must finish after it, limits.drain_s, "
                f"{self.longest_s:g} s, found {self.shutdown_s:g} s; raise it or lower the others"
            )


def drain_times(longest_s: float, lame_duck_s: float) -> DrainTimes:
    """Return the times, in whole seconds, that let a request of `longest_s` finish wherever its front door runs.

    Args:
        longest_s: see DrainTimes.
        lame_duck_s: likewise.
    """
    shutdown_s = float(math.ceil(max(lame_duck_s + longest_s + _CLOSING_S, ROUTER_SHUTDOWN_S)))
    drain_s = shutdown_s + _NOTICE_S
    return DrainTimes(
        longest_s=longest_s,
        lame_duck_s=lame_duck_s,
        shutdown_s=shutdown_s,
        drain_s=drain_s,
        grace_s=drain_s + _MARGIN_S,
    )
