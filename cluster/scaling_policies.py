"""The policies Ray Serve asks how many replicas a deployment should have. They read, and ask the pure functions.

Ray Serve calls a policy every tenth of a second in its controller, with what the replicas' `record_autoscaling_stats`
returned over the last seconds. It pickles this module by value: what has to be shared is in `scaling_board.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from ray.serve.config import AutoscalingContext

from cluster.autoscaling import Bounds, History, Need, Pace, decide
from cluster.names import FRONT_DOOR, is_router
from cluster.scaling_board import Entry, ScalingBoard, board_of
from cluster.scaling_budget import Want
from cluster.scaling_needs import (
    ExpertStats,
    FrontDoorStats,
    RouterStats,
    Targets,
    context_need,
    experts_need,
    front_door_need,
    long_router_need,
    router_need,
)
from cluster.scaling_to_zero import Activities, Activity, activities_of, last_replica

_HISTORY = "herd_history"


class ScalingPolicy:
    """What all policies do; a kind says what it needs.

    Args:
        pace: a Pace as plain data: Ray Serve passes policies JSON.
        targets: a Targets likewise.
        zero_after_s: seconds without a sequence before the last replica goes, where there may be none.
        sharing: deployments that share the budget.
        budget: of replicas; None: no limit.
    """

    lingers_s = 0.0
    """Seconds that the last replica stays longer than `zero_after_s`."""

    def __init__(
        self,
        *,
        pace: dict[str, float],
        targets: dict[str, float],
        zero_after_s: float,
        sharing: Sequence[str] = (),
        budget: int | None = None,
    ) -> None:
        self._pace = Pace(**pace)
        self._targets = Targets(**targets)
        self._zero_after_s = zero_after_s
        self._sharing = tuple(sharing)
        self._budget = budget

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return the replicas there should be, and the state for the next call."""
        board = board_of(context.app_name)
        present, least = context.target_num_replicas, context.capacity_adjusted_min_replicas
        need = self.need(context, board)
        absent_at = self._absent_at(context, board)
        history = context.policy_state.get(_HISTORY) or History()
        wanted, history = decide(
            need,
            present=present,
            running=context.current_num_replicas,
            bounds=Bounds(min_replicas=max(1, least), max_replicas=context.capacity_adjusted_max_replicas),
            pace=self._pace,
            # Waits that began when none was there are no reason for a second one.
            history=dataclasses.replace(history, grew_at=max(history.grew_at, absent_at)),
            now=context.current_time,
        )
        wanted = self.allow(wanted, present)
        if not least:
            doors = board.entry(FRONT_DOOR)
            activity = self.concerns(doors.activities) if doors and doors.activities else None
            wanted = last_replica(wanted, present, activity, self._zero_after_s + self.lingers_s)
        entry = Entry(
            want=Want(wanted=wanted, present=present, least=min(wanted, max(1, least))),
            lateness=need.lateness if need else 0.0,
            ttft_s=self.ttft_s(context),
            activities=self.activities(context),
            context_tokens=self.context_tokens(context),
            absent_at=absent_at,
        )
        board.note(context.deployment_name, entry)
        if self._budget is not None and context.deployment_name in self._sharing:
            wanted = board.share(context.deployment_name, self._sharing, self._budget)
            # The next policy to be asked must count what this one has just been given.
            board.note(
                context.deployment_name,
                dataclasses.replace(entry, want=dataclasses.replace(entry.want, present=max(wanted, present))),
            )
        return wanted, {_HISTORY: history}

    def need(self, context: AutoscalingContext, board: ScalingBoard) -> Need | None:
        """Return what the deployment needs; None: not known."""
        raise NotImplementedError

    def allow(self, wanted: int, present: int) -> int:
        """Return what is possible of what is wanted."""
        return wanted

    def ttft_s(self, context: AutoscalingContext) -> float | None:
        """Return the time to the first token that the deployment's replicas have seen."""
        return None

    def activities(self, context: AutoscalingContext) -> Activities | None:
        """Return what clients ask for, where the deployment's replicas know."""
        return None

    def context_tokens(self, context: AutoscalingContext) -> float | None:
        """Return what the deployment's sequences may get on context shards; None: not known here."""
        return None

    def concerns(self, activities: Activities) -> Activity:
        """Return what of it the deployment is there for."""
        return activities.any

    def _absent_at(self, context: AutoscalingContext, board: ScalingBoard) -> float:
        """Return when none of the replicas ran, if there may be none."""
        if context.capacity_adjusted_min_replicas:
            return -math.inf
        if not context.current_num_replicas:
            return float(context.current_time)
        known = board.entry(context.deployment_name)
        return known.absent_at if known else -math.inf


class FrontDoorPolicy(ScalingPolicy):
    """Front doors: sequences in flight and prompt tokens that wait."""

    def need(self, context: AutoscalingContext, board: ScalingBoard) -> Need | None:
        """Return what front doors need."""
        stats = [FrontDoorStats(**each) for each in read_stats(context, ("sequences", "queued_prompt_tokens"))]
        return front_door_need(stats, self._targets, context.current_time)

    def allow(self, wanted: int, present: int) -> int:
        """Keep every front door: streams end with theirs, and nobody moves clients away before."""
        return max(wanted, present)

    def ttft_s(self, context: AutoscalingContext) -> float | None:
        """Return the slowest front door's; 0 is none, for they report it when they had no first token."""
        return max((each["ttft_s"] for each in read_stats(context, ("ttft_s",))), default=0.0) or None

    def activities(self, context: AutoscalingContext) -> Activities:
        """Return what clients ask for, by each front door's newest report: a mean would tell later."""
        names = ("sequences", "queued_prompt_tokens", "idle_s", "long_sequences", "long_idle_s")
        newest = [read_newest(context, replica_id, names) for replica_id in context.running_replicas or ()]
        doors = [FrontDoorStats(**each) if each else None for each in newest]
        return activities_of(doors, self._targets.stale_s, context.current_time)


class RouterPolicy(ScalingPolicy):
    """Routers: KV, slots, prompts, and how long clients wait for their first token."""

    def need(self, context: AutoscalingContext, board: ScalingBoard) -> Need | None:
        """Return what routers need."""
        names = (
            "kv_share",
            "slot_share",
            "queued_prompt_tokens",
            "prompt_tokens_per_s",
            "prefill_tokens_per_s",
        )
        doors = board.entry(FRONT_DOOR)
        experts = [board.entry(name) for name in self._sharing if not is_router(name)]
        return router_need(
            [RouterStats(**each) for each in read_stats(context, names)],
            self._targets,
            context.current_time,
            ttft_s=doors.ttft_s if doors else None,
            experts_are_late=any(self._is_late(entry, context.current_time) for entry in experts),
        )

    def context_tokens(self, context: AutoscalingContext) -> float | None:
        """Return what its sequences may get there, nothing where no router runs."""
        if not context.running_replicas:
            return 0.0
        known = read_stats(context, ("context_wanted_tokens",))
        is_fresh = known and all(context.current_time - each["at_s"] <= self._targets.stale_s for each in known)
        return sum(each["context_wanted_tokens"] for each in known) if is_fresh else None

    def concerns(self, activities: Activities) -> Activity:
        """Return all but long requests, which have routers of their own."""
        return activities.standard

    def _is_late(self, experts: Entry | None, now: float) -> bool:
        """Tell whether work waits at a group, or did when none of its replicas ran a moment ago."""
        if experts is None:
            return False
        return experts.lateness > 1 or now - experts.absent_at < self._pace.late_again_s


class LongRouterPolicy(RouterPolicy):
    """Routers for long requests: KV, and sequences over slots, those in line in front doors included."""

    def need(self, context: AutoscalingContext, board: ScalingBoard) -> Need | None:
        """Return what they need."""
        names = ("kv_share", "slot_share", "queued_prompt_tokens", "slots")
        known = read_stats(context, names)
        slots = max((each.pop("slots") for each in known), default=1.0)
        doors = board.entry(FRONT_DOOR)
        return long_router_need(
            [RouterStats(**each) for each in known],
            self._targets,
            context.current_time,
            sequences=doors.activities.long.sequences if doors and doors.activities else 0.0,
            slots=slots,
        )

    def concerns(self, activities: Activities) -> Activity:
        """Return long requests."""
        return activities.long


class ExpertsPolicy(ScalingPolicy):
    """Replicas of an expert group: how much of their time they compute, and how long dispatches wait."""

    lingers_s = 2.0
    """A sequence that meets the last router going is heard of within this time. Its experts stay, so it ends there."""

    def need(self, context: AutoscalingContext, board: ScalingBoard) -> Need | None:
        """Return what the group needs."""
        names = ("tokens_per_s", "capacity_tokens_per_s", "queue_s")
        stats = [ExpertStats(**each) for each in read_stats(context, names)]
        return experts_need(stats, self._targets, context.current_time)


class ContextPolicy(ScalingPolicy):
    """Context shards: room for the tokens that routers' sequences may get."""

    def need(self, context: AutoscalingContext, board: ScalingBoard) -> Need | None:
        """Return what the shards need."""
        entries = [board.entry(name) for name in self._sharing if is_router(name)]
        held = [each["total_tokens"] for each in read_stats(context, ("total_tokens",))]
        if not held:
            return None
        return context_need([each.context_tokens if each else None for each in entries], min(held))


def read_stats(context: AutoscalingContext, names: Sequence[str]) -> list[dict[str, float]]:
    """Return each running replica's stats by name, and when they were measured as `at_s`.

    A replica that has said nothing yet makes the list empty: what the others say is not what the deployment needs.
    """
    raw, mean = context.raw_metrics or {}, context.aggregated_metrics or {}
    found = []
    for replica_id in context.running_replicas or ():
        if not all(raw.get(name, {}).get(replica_id) for name in names):
            return []
        stats = {name: float(mean[name][replica_id]) for name in names}
        found.append(stats | {"at_s": float(raw[names[0]][replica_id][-1].timestamp)})
    return found


def read_newest(context: AutoscalingContext, replica_id: Any, names: Sequence[str]) -> dict[str, float] | None:
    """Return what a replica said last by name, and when as `at_s`; None: nothing yet."""
    series = [(context.raw_metrics or {}).get(name, {}).get(replica_id) for name in names]
    if not all(series):
        return None
    newest = {name: float(points[-1].value) for name, points in zip(names, series, strict=True)}
    return newest | {"at_s": float(series[0][-1].timestamp)}
