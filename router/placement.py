"""Which replica holds which experts, as a router sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from router.location import Location


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertHolder:
    """One replica that runs experts."""

    replica_id: str
    """Unique in the cluster, new after every restart."""
    address: str
    """host:port of its gRPC server."""
    unix_address: str | None = None
    """unix:PATH of the same server; of use on its own host only."""
    host: str = ""
    """Name of its host, which in Kubernetes is its pod; a router on the same one takes the Unix socket."""
    location: Location = field(default_factory=Location)
    """Where it runs; routers prefer those nearby."""
    expert_ids: tuple[int, ...]
    """Logical experts it holds in every MoE layer, ascending."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A version of the map from experts to replicas. Never changed: a new version replaces it."""

    version: int
    """Grows with every change."""
    holders: tuple[ExpertHolder, ...]
    """Every replica that takes dispatches."""
    routers: Mapping[str, Location] = field(default_factory=dict)
    """Where all routers with as much load are, by name; empty: not known, and nobody prefers holders nearby."""

    @cached_property
    def replicas_by_expert(self) -> dict[int, tuple[str, ...]]:
        """Map each held expert to the replicas that hold it, in the order of `holders`."""
        table: dict[int, list[str]] = {}
        for holder in self.holders:
            for expert in holder.expert_ids:
                table.setdefault(expert, []).append(holder.replica_id)
        return {expert: tuple(replicas) for expert, replicas in table.items()}

    def missing(self, experts: Iterable[int]) -> list[int]:
        """Return those of `experts` that no replica holds."""
        return [expert for expert in experts if expert not in self.replicas_by_expert]
