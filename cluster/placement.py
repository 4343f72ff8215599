"""Which experts each replica should hold, from measured load. A pure function of reports, its own state and the time.

    measured --> hot for `evidence_s` --> wanted --> loaded, announced, served --> not needed for `drop_after_s`: gone
                                            `- not loaded in `give_up_s`, or no room: withdrawn, not asked for a while

Greedy as DeepSeek's EPLB: the next copy goes to the expert with the most load per copy, and to the replica with the
least load. But additive: what is there stays and serves until the copy has taken its share, and a decision changes
little. So a rebalance never stops anything, and a wrong one costs one load from disk.

What moves with noise must not move experts: a copy is added where a replica has `add_above` times the mean load in
every sample of the evidence, and dropped where all others would stay below `keep_above` without it.

Source: deepseek-ai/EPLB, eplb.py, `replicate_experts` and `balanced_packing`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cluster.placement_load import PlacedModel, ReplicaReport, count_copies, expected_load, expert_loads

Copy = tuple[str, int]
"""(replica, expert)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacementRules:
    """How eager placing is. The defaults suit a decision a second."""

    evidence_s: float = 2.0
    """Seconds that samples must cover before a copy is added; positive."""
    window_s: float = 3.0
    """Seconds that a sample counts; at least `evidence_s`."""
    interval_s: float = 2.0
    """Least seconds between two decisions that change anything; not negative."""
    add_above: float = 1.3
    """A replica is hot from this many times the mean load; above `keep_above`."""
    keep_above: float = 1.15
    """A copy is needed if without it another replica had more than this many times the mean load; at least 1."""
    least_gain: float = 0.05
    """Part of the hot replica's load that a copy takes on at least, and by which its replica stays less busy at least;
    in (0, 1)."""
    copies_at_once: int = 4
    """Most copies added in one decision, each of another expert to another replica; at least 1."""
    drop_after_s: float = 60.0
    """Seconds a copy must not have been needed before it is dropped; positive."""
    give_up_s: float = 120.0
    """Seconds a replica has to load a copy; positive."""
    avoid_s: float = 300.0
    """Seconds a copy that came to nothing is not asked for again; not negative."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacementState:
    """What decisions remember. A directory that restarts begins with none and takes what it finds as wanted."""

    samples: tuple[tuple[float, Mapping[int, float]], ...] = ()
    """(time, tokens per second of each expert), oldest first."""
    extras: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """By replica, the experts wanted beyond its home. It has an entry for every replica known."""
    asked_at: Mapping[Copy, float] = field(default_factory=dict)
    """Since when a copy is on its way."""
    unneeded_since: Mapping[Copy, float] = field(default_factory=dict)
    """Since when a copy has not been needed."""
    avoided_until: Mapping[Copy, float] = field(default_factory=dict)
    """Until when a copy that came to nothing is not asked for again."""
    changed_at: float = -math.inf
    """When a decision last changed anything."""


def plan_placement(
    replicas: Sequence[ReplicaReport],
    model: PlacedModel,
    state: PlacementState,
    now: float,
    rules: PlacementRules | None = None,
) -> tuple[dict[str, frozenset[int]], PlacementState]:
    """Decide which experts each replica should hold.

    Args:
        replicas: of every replica that lives, its newest report.
        model: what is placed.
        state: as returned last; `PlacementState()` at first.
        now: seconds on any clock that does not go back.
        rules: None: the defaults.

    Returns:
        By replica, the experts it should hold: always its home and never more than its memory takes. It loads what it
        lacks, announces it, and drops what is not in the set once nobody is sent there any more. And the new state.
    """
    return _Decision(replicas, model, state, now, rules or PlacementRules()).run()


class _Decision:
    """One decision; see `plan_placement`."""

    def __init__(
        self,
        replicas: Sequence[ReplicaReport],
        model: PlacedModel,
        state: PlacementState,
        now: float,
        rules: PlacementRules,
    ) -> None:
        self._reports = {report.replica_id: report for report in replicas}
        self._model, self._state, self._now, self._rules = model, state, now, rules
        self._avoided = {copy: until for copy, until in state.avoided_until.items() if until > now}
        self._home = {replica_id: model.home(report) for replica_id, report in self._reports.items()}
        self._asked: dict[Copy, float] = {}
        self._extras = {
            replica_id: self._keep(report, state.extras.get(replica_id)) for replica_id, report in self._reports.items()
        }
        self._unneeded: dict[Copy, float] = {}
        self._changed_at = state.changed_at

    def run(self) -> tuple[dict[str, frozenset[int]], PlacementState]:
        """Return wanted experts and new state."""
        samples = self._take_sample()
        # Without tokens nothing is known: an idle night must not undo what the day has learned.
        if samples and samples[-1][0] == self._now:
            loads = [sample for _, sample in samples]
            self._note_unneeded(_mean(loads))
            if self._now - self._state.changed_at >= self._rules.interval_s:
                covered_s = samples[-1][0] - samples[0][0]
                has_added = covered_s >= self._rules.evidence_s and self._add(loads)
                if has_added or self._drop():
                    self._changed_at = self._now
        state = PlacementState(
            samples=samples,
            extras={replica_id: frozenset(extras) for replica_id, extras in self._extras.items()},
            asked_at=self._asked,
            unneeded_since=self._unneeded,
            avoided_until=self._avoided,
            changed_at=self._changed_at,
        )
        return {replica_id: frozenset(experts) for replica_id, experts in self._wanted().items()}, state

    def _keep(self, report: ReplicaReport, known: frozenset[int] | None) -> set[int]:
        """Return the extras a replica goes on with; of one that is new here, those it holds."""
        home = self._home[report.replica_id]
        if known is None:
            return set(report.held - home)
        kept = set(known & report.held)
        for expert in known - report.held:
            copy = (report.replica_id, expert)
            asked_at = self._state.asked_at.get(copy, self._now)
            if report.spare_bytes < self._model.expert_bytes or self._now - asked_at >= self._rules.give_up_s:
                self._avoided[copy] = self._now + self._rules.avoid_s
            else:
                self._asked[copy] = asked_at
                kept.add(expert)
        return kept

    def _wanted(self) -> dict[str, set[int]]:
        return {replica_id: extras | self._home[replica_id] for replica_id, extras in self._extras.items()}

    def _take_sample(self) -> tuple[tuple[float, Mapping[int, float]], ...]:
        """Return the samples that count, this one included unless it has no tokens."""
        loads = expert_loads(tuple(self._reports.values()))
        samples = [each for each in self._state.samples if self._now - each[0] <= self._rules.window_s]
        if any(loads.values()):
            samples.append((self._now, loads))
        return tuple(samples)

    def _add(self, samples: Sequence[Mapping[int, float]]) -> bool:
        """Want up to `copies_at_once` more copies; tell whether there is any."""
        # A replica loads one expert at a time: two would share its disk and both come late.
        free = {
            replica_id
            for replica_id, report in self._reports.items()
            if report.spare_bytes >= self._model.expert_bytes and report.held >= self._extras[replica_id]
        }
        added: set[int] = set()
        while len(added) < self._rules.copies_at_once:
            copy = self._next_copy(samples, free, added)
            if copy is None:
                break
            replica_id, expert = copy
            self._extras[replica_id].add(expert)
            self._asked[copy] = self._now
            free.discard(replica_id)
            added.add(expert)
        return bool(added)

    def _next_copy(self, samples: Sequence[Mapping[int, float]], free: set[str], added: set[int]) -> Copy | None:
        """Return the copy that helps most, if one helps in every sample."""
        wanted = self._wanted()
        copies = count_copies(wanted)
        mean = _mean(samples)
        busy = expected_load(wanted, mean)
        hot = self._rules.add_above * sum(busy.values()) / len(busy)
        experts = {
            expert
            for replica_id, load in busy.items()
            if load >= hot
            for expert in wanted[replica_id]
            if mean.get(expert, 0.0) > 0 and expert not in added
        }
        busy_by_sample = [expected_load(wanted, sample) for sample in samples] if experts else []
        for expert in sorted(experts, key=lambda each: (-mean[each] / len(copies[each]), each)):
            for target in self._targets(expert, copies[expert], free, busy):
                if all(
                    self._helps(copies[expert], target, sample[expert], loads)
                    for sample, loads in zip(samples, busy_by_sample, strict=True)
                    if expert in sample
                ):
                    return target, expert
        return None

    def _targets(self, expert: int, holders: Sequence[str], free: set[str], busy: Mapping[str, float]) -> list[str]:
        """Return the replicas to consider for a copy: the least busy on a host without one, then the least busy."""
        hosts = {self._reports[replica_id].host for replica_id in holders}
        possible = [
            replica_id
            for replica_id in free.difference(holders)
            if expert not in self._reports[replica_id].held and (replica_id, expert) not in self._avoided
        ]

        def rank(replica_id: str) -> tuple[float, float, str]:
            report = self._reports[replica_id]
            return busy[replica_id], report.queue_s + report.compute_s, replica_id

        elsewhere = [replica_id for replica_id in possible if self._reports[replica_id].host not in hosts]
        return [min(ids, key=rank) for ids in (elsewhere, possible) if ids]

    def _helps(self, holders: Sequence[str], target: str, load: float, busy: Mapping[str, float]) -> bool:
        """Tell whether a copy at `target` is worth its memory: a holder is hot, and `target` does not become so."""
        before, share = max(busy[replica_id] for replica_id in holders), load / (len(holders) + 1)
        gain = self._rules.least_gain * before
        is_hot = before >= self._rules.add_above * sum(busy.values()) / len(busy)
        return is_hot and share >= gain and busy[target] + share <= before - gain

    def _note_unneeded(self, loads: Mapping[int, float]) -> None:
        """Take note of the copies that the others could do without."""
        wanted = self._wanted()
        copies = count_copies(wanted)
        busy = expected_load(wanted, loads)
        most = self._rules.keep_above * sum(busy.values()) / len(busy)
        for replica_id, extras in self._extras.items():
            for expert in extras & self._reports[replica_id].held:
                # One that is wanted elsewhere and not there yet replaces nothing.
                others = [each for each in copies[expert] if each != replica_id and expert in self._reports[each].held]
                load = loads.get(expert, 0.0)
                more = load / len(others) - load / len(copies[expert]) if others else math.inf
                if others and all(busy[each] + more <= most for each in others):
                    copy = (replica_id, expert)
                    self._unneeded[copy] = self._state.unneeded_since.get(copy, self._now)

    def _drop(self) -> bool:
        """Give up the copy that has been of no use for longest, if for long enough; tell whether there is one."""
        if not self._unneeded:
            return False
        copy, since = min(self._unneeded.items(), key=lambda item: (item[1], item[0]))
        if self._now - since < self._rules.drop_after_s:
            return False
        del self._unneeded[copy]
        self._extras[copy[0]].discard(copy[1])
        return True


def _mean(samples: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Return the mean of each expert's load."""
    total: dict[int, float] = {}
    for sample in samples:
        for expert, load in sample.items():
            total[expert] = total.get(expert, 0.0) + load / len(samples)
    return total
