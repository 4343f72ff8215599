"""The routers of one length class as a front door sees them: what it takes on for them, and who waits.

A request is `long` if its longest sequence, prompt and output together, has at least `long.from_tokens`; every other
one is `standard`. Each class has routers, limits and a line of its own, so that one never waits for the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cluster.admission import Admission
from cluster.class_queue import ClassQueue
from cluster.limits import FrontDoorLimits
from cluster.router_client import RouterClient

LengthClass = Literal["standard", "long"]


@dataclass(frozen=True, slots=True)
class PoolAccess:
    """A pool of routers and what a front door may give it."""

    client: RouterClient
    """Reaches its routers."""
    limits: FrontDoorLimits
    """Of its length class."""


class Pool:
    """One length class in a front door. Belongs to one event loop.

    Args:
        name: of the class.
        access: to its routers.
        queues: whether sequences that find its routers full wait in line here, rather than being refused.
    """

    def __init__(self, name: LengthClass, access: PoolAccess, *, queues: bool) -> None:
        access.limits.check()
        self.name = name
        self.client = access.client
        self.limits = access.limits
        self.admission = Admission(access.limits)
        self.queue = ClassQueue(access.client.generate) if queues else None
