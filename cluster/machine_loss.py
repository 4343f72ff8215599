"""What the end of one machine would take that more copies were made to keep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol


class Holder(Protocol):
    """An expert replica, as somebody tells it."""

    @property
    def host(self) -> str:
        """Return its machine."""

    @property
    def expert_ids(self) -> Sequence[int]:
        """Return the experts it holds."""


def machines_by_expert(replicas: Iterable[Holder]) -> dict[int, list[str]]:
    """Return the machine of each copy of each expert."""
    found: dict[int, list[str]] = {}
    for replica in replicas:
        for expert in replica.expert_ids:
            found.setdefault(expert, []).append(replica.host)
    return found


def lost_with(replicas: Sequence[Holder]) -> dict[str, list[int]]:
    """Return by machine the experts, ascending, with several copies, all of them there, though there are others."""
    if len({replica.host for replica in replicas}) < 2:
        return {}
    lost: dict[str, list[int]] = {}
    for expert, machines in sorted(machines_by_expert(replicas).items()):
        if len(machines) > 1 and len(set(machines)) == 1:
            lost.setdefault(machines[0], []).append(expert)
    return lost
