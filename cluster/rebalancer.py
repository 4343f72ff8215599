"""The placement decisions of a directory: `placement.py` with what replicas report, about once a second."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cluster.directory import ExpertReplica
from cluster.placement import PlacementRules, PlacementState, plan_placement
from cluster.placement_load import PlacedModel, ReplicaReport

_DECIDE_EVERY_S = 1.0


class Rebalancer:
    """Says which experts each replica should hold. Without a clock: every `now` is of one monotonic clock, in seconds.

    What it forgets when it restarts, the replicas still hold: it begins with that.

    Args:
        rules: None: the defaults.
    """

    def __init__(self, rules: PlacementRules | None = None) -> None:
        self._rules = rules
        self._reports: dict[str, ReplicaReport] = {}
        self._state = PlacementState()
        self._wanted: dict[str, frozenset[int]] = {}
        self._decided_at = -math.inf

    @property
    def reports(self) -> Mapping[str, ReplicaReport]:
        """The newest report of each replica."""
        return self._reports

    def hear(self, report: ReplicaReport) -> None:
        """Take a replica's report."""
        self._reports[report.replica_id] = report

    def decide(self, replicas: Sequence[ExpertReplica], now: float) -> dict[str, tuple[frozenset[int], frozenset[int]]]:
        """Decide anew if it is time; return what changed: by replica, the experts to add and to drop.

        Args:
            replicas: all that are registered.
            now: of this moment.
        """
        if now - self._decided_at < _DECIDE_EVERY_S:
            return {}
        self._decided_at = now
        known = {replica.holder.replica_id for replica in replicas}
        self._reports = {each: report for each, report in self._reports.items() if each in known}
        if not self._reports:
            return {}
        before = self._wanted
        reports = tuple(self._reports.values())
        self._wanted, self._state = plan_placement(reports, placed_model(replicas), self._state, now, self._rules)
        changed = {}
        for replica_id, wanted in self._wanted.items():
            earlier = before.get(replica_id, wanted)
            if wanted != earlier:
                changed[replica_id] = (wanted - earlier, earlier - wanted)
        return changed

    def wanted(self, replica_id: str) -> frozenset[int] | None:
        """Return the experts a replica should hold; None: as it is."""
        return self._wanted.get(replica_id)


def placed_model(replicas: Sequence[ExpertReplica]) -> PlacedModel:
    """Return what placing needs to know of the model, as its replicas tell it."""
    return PlacedModel(
        expert_bytes=max(max(each.weight_bytes // len(each.holder.expert_ids) for each in replicas), 1),
        groups={each.group: frozenset(each.home_ids) for each in replicas},
    )
