"""The expert replicas of a simulated Herd, placed by Herd's own placement."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulation.fleet import Fleet
from benchmarks.simulation.hardware import Model
from benchmarks.simulation.roofline import USABLE, queue_factor
from cluster.placement import PlacementRules, PlacementState, plan_placement
from cluster.placement_load import PlacedModel, ReplicaReport
from cluster.planner.hardware import Device
from cluster.scaling_needs import ExpertStats

_REPLICAS_PER_HOST = 8


@dataclass(slots=True)
class Holder:
    """A replica that runs."""

    name: str
    host: str
    group: int
    extras: set[int] = field(default_factory=set)
    """Experts beyond its home that it serves."""
    loading: dict[int, float] = field(default_factory=dict)
    """Experts on their way, and when they are there."""


class ExpertPool:
    """A fleet per expert group, and who holds what.

    Args:
        model: served.
        gpu: of each replica.
        start_s: what a replica takes before its first byte is read.
        load_bytes_per_s: how fast weights come.
        place_every_s: seconds between placements.
        is_placed: False: only how many replicas there are is kept, not what each holds.
    """

    def __init__(
        self,
        model: Model,
        gpu: Device,
        *,
        start_s: float,
        load_bytes_per_s: float,
        place_every_s: float,
        is_placed: bool = True,
    ) -> None:
        self._is_placed = is_placed
        self._model = model
        self._spare = int((USABLE * gpu.memory_bytes - model.group_bytes) // model.expert_bytes)
        self._load_s = model.expert_bytes / load_bytes_per_s
        self._place_every_s = place_every_s
        self._placed_at = -math.inf
        # Decisions are this far apart; samples must cover as many of them as they do a second apart.
        self._rules = PlacementRules(evidence_s=place_every_s, window_s=2.5 * place_every_s)
        self._state = PlacementState()
        size = model.group_experts
        self._homes = [frozenset(range(group * size, (group + 1) * size)) for group in range(model.groups)]
        self._placed = PlacedModel(
            expert_bytes=int(model.expert_bytes),
            groups={str(group): home for group, home in enumerate(self._homes)},
        )
        load_s = model.group_bytes / load_bytes_per_s
        self.fleets = [Fleet(gpus_each=1, start_s=start_s + load_s) for _ in range(model.groups)]
        self.holders: list[list[Holder]] = [[] for _ in range(model.groups)]
        self._num_made = 0
        self.num_copies_added = 0

    def advance(self, now: float, step_s: float) -> None:
        """Let replicas and copies arrive that are due, and forget holders that are gone."""
        for group, fleet in enumerate(self.fleets):
            fleet.advance(now, step_s)
            if self._is_placed:
                self._match(group)
        for holder in (each for holders in self.holders for each in holders if each.loading):
            due = {expert for expert, at in holder.loading.items() if at <= now}
            holder.extras |= due
            for expert in due:
                del holder.loading[expert]

    def fail(self, group: int, index: int, now: float) -> None:
        """Let a replica of a group die: it starts again with its home alone."""
        if self.fleets[group].fail(1, now) and self._is_placed:
            del self.holders[group][index % len(self.holders[group])]

    def _match(self, group: int) -> None:
        """Have as many holders as replicas run; the newest go first."""
        holders, running = self.holders[group], self.fleets[group].running
        del holders[running:]
        while len(holders) < running:
            self._num_made += 1
            holders.append(
                Holder(name=f"r{self._num_made}", host=f"h{self._num_made // _REPLICAS_PER_HOST}", group=group)
            )

    def loads(self, seconds: float, popularity: NDArray[np.float64]) -> tuple[list[float], dict[str, float]]:
        """Return how busy replicas are: per group one without extras, and those with extras by name.

        Args:
            seconds: of computing per second, all experts together.
            popularity: [experts] part of it that each gets.
        """
        size = self._model.group_experts
        copies = np.repeat([float(len(holders)) for holders in self.holders], size)
        with_extras = [each for holders in self.holders for each in holders if each.extras]
        for holder in with_extras:
            copies[list(holder.extras)] += 1
        # An expert without a copy stops everything.
        share = np.where(copies > 0, seconds * popularity / np.maximum(copies, 1), math.inf)
        plain = share.reshape(self._model.groups, size).sum(axis=1).tolist()
        special = {each.name: plain[each.group] + float(share[list(each.extras)].sum()) for each in with_extras}
        return plain, special

    def stats(
        self, group: int, plain: float, special: dict[str, float], dispatch_s: float, now: float
    ) -> list[ExpertStats]:
        """Return what a group's replicas would report; those without extras report alike."""
        made: dict[float, ExpertStats] = {}
        found = []
        for holder in self.holders[group]:
            use = special.get(holder.name, plain)
            if use not in made:
                wait_s = dispatch_s * queue_factor(use)
                made[use] = ExpertStats(at_s=now, tokens_per_s=min(use, 1.0), capacity_tokens_per_s=1.0, queue_s=wait_s)
            found.append(made[use])
        return found

    def place(self, seconds: float, popularity: NDArray[np.float64], now: float) -> None:
        """Ask Herd's placement which experts each replica should hold, as often as is due, and obey."""
        if now - self._placed_at < self._place_every_s:
            return
        self._placed_at = now
        copies = np.repeat([float(len(holders)) for holders in self.holders], self._model.group_experts)
        holders = [each for group in self.holders for each in group]
        for holder in holders:
            for expert in holder.extras:
                copies[expert] += 1
        share = (1e6 * seconds * popularity / np.maximum(copies, 1)).tolist()
        reports = [self._report(holder, share) for holder in holders]
        wanted, self._state = plan_placement(reports, self._placed, self._state, now, self._rules)
        for holder in holders:
            extras = wanted[holder.name] - self._homes[holder.group]
            holder.extras &= extras
            for expert in extras - holder.extras - holder.loading.keys():
                holder.loading[expert] = now + self._load_s
                self.num_copies_added += 1

    def _report(self, holder: Holder, share: list[float]) -> ReplicaReport:
        held = self._homes[holder.group] | holder.extras
        return ReplicaReport(
            replica_id=holder.name,
            group=str(holder.group),
            host=holder.host,
            held=held,
            spare_bytes=(self._spare - len(holder.extras)) * self._placed.expert_bytes,
            tokens_per_s={expert: share[expert] for expert in held},
        )
