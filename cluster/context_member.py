"""What a context shard tells directories."""

from __future__ import annotations

from typing import Any

from ray.actor import ActorHandle

from cluster.directory import ContextReplica


class ContextMember:
    """A context shard as a Member.

    Args:
        shard: what to register.
    """

    def __init__(self, shard: ContextReplica) -> None:
        self._shard = shard

    @property
    def replica_id(self) -> str:
        """Return its name."""
        return self._shard.holder.shard_id

    @property
    def registered(self) -> ContextReplica:
        """Return what it can hold: that never changes."""
        return self._shard

    def heartbeat(self, directory: ActorHandle) -> Any:
        """Say that it lives."""
        return directory.renew.remote(self.replica_id)

    def heard(self, answer: Any) -> None:
        """Nothing is asked of a shard."""

    def register(self, directory: ActorHandle) -> Any:
        """Tell what it can hold."""
        return directory.register_shard.remote(self._shard)
