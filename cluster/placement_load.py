"""What every expert replica reports, and the load a placement would put on it. Pure arithmetic, no clock.

An *expert* is a logical one, taken through all MoE layers; a *copy* of it is a replica that holds it. Routers share an
expert's tokens evenly among its copies.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.layer_load import LayerLoad


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaReport:
    """What one expert replica says of itself, newest heartbeat."""

    replica_id: str
    """Unique in the cluster, new after every restart."""
    group: str
    """The expert group it belongs to; once it has loaded, it holds all of that group's experts."""
    host: str
    """Machine it runs on, in Kubernetes its node; copies of an expert prefer different ones."""
    held: frozenset[int]
    """Experts it holds and serves now."""
    spare_bytes: int
    """Bytes it has for experts that it does not hold yet, those being loaded included."""
    tokens_per_s: Mapping[int, float]
    """Tokens per second of each held expert, all MoE layers together; an expert left out got none."""
    queue_s: float = 0.0
    """Seconds a dispatch waits, mean. Breaks ties between replicas that could take a copy."""
    compute_s: float = 0.0
    """Seconds a dispatch computes, mean. Breaks ties likewise."""
    layer_load: LayerLoad | None = field(default=None, compare=False)
    """The tokens layer by layer, for people; placing does not look at it. None: not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedModel:
    """What placing needs to know of a model."""

    expert_bytes: int
    """Bytes of one expert through all MoE layers; positive."""
    groups: Mapping[str, frozenset[int]]
    """Experts of each group: the home of its replicas."""

    def home(self, report: ReplicaReport) -> frozenset[int]:
        """Return the experts a replica must never drop; of a group that is not known, all it holds."""
        return self.groups.get(report.group, report.held)


def expert_loads(replicas: Sequence[ReplicaReport]) -> dict[int, float]:
    """Return the tokens per second of each expert, all its copies together."""
    loads: dict[int, float] = {}
    for replica in replicas:
        for expert, tokens_per_s in replica.tokens_per_s.items():
            loads[expert] = loads.get(expert, 0.0) + tokens_per_s
    return loads


def count_copies(held: Mapping[str, Collection[int]]) -> dict[int, list[str]]:
    """Return the replicas that hold each expert, in the order of `held`."""
    copies: dict[int, list[str]] = {}
    for replica_id, experts in held.items():
        for expert in experts:
            copies.setdefault(expert, []).append(replica_id)
    return copies


def expected_load(held: Mapping[str, Collection[int]], loads: Mapping[int, float]) -> dict[str, float]:
    """Return the tokens per second each replica would get under a placement.

    Args:
        held: experts of each replica.
        loads: tokens per second of each expert; what nobody holds goes nowhere.
    """
    shares = {expert: loads.get(expert, 0.0) / len(replica_ids) for expert, replica_ids in count_copies(held).items()}
    return {replica_id: sum(shares[expert] for expert in experts) for replica_id, experts in held.items()}


def imbalance(expected: Mapping[str, float]) -> float:
    """Return the busiest replica's load over the mean; 1 is perfect, also where there is no load at all."""
    total = sum(expected.values())
    return max(expected.values()) * len(expected) / total if total else 1.0
