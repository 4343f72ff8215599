"""What an expert replica tells directories, and hears from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.actor import ActorHandle

from cluster.directory import ExpertReplica
from cluster.placement_load import ReplicaReport


class ExpertMember:
    """An expert replica as a Member.

    Args:
        replica: what to register first.
        report: makes the report that goes with a heartbeat.
        on_wanted: takes the experts that the replica should hold; must not block.
    """

    def __init__(
        self,
        replica: ExpertReplica,
        *,
        report: Callable[[], ReplicaReport],
        on_wanted: Callable[[frozenset[int]], None],
    ) -> None:
        self.registered = replica
        """What to register; another one when it holds other experts."""
        self._report = report
        self._on_wanted = on_wanted

    @property
    def replica_id(self) -> str:
        """Return its name."""
        return self.registered.holder.replica_id

    def heartbeat(self, directory: ActorHandle) -> Any:
        """Report its load."""
        return directory.heartbeat.remote(self._report())

    def heard(self, answer: Any) -> None:
        """Take the experts it should hold."""
        self._on_wanted(answer)

    def register(self, directory: ActorHandle) -> Any:
        """Tell what it holds."""
        return directory.register.remote(self.registered)
