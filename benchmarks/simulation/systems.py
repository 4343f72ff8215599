"""The three ways to serve a workload: Herd that scales, Herd of a fixed size, whole models that scale as one block."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.simulation.experts import ExpertPool
from benchmarks.simulation.fleet import Fleet
from benchmarks.simulation.hardware import Model
from benchmarks.simulation.roofline import RouterUnit, WholeUnit, expert_seconds, pass_s
from benchmarks.simulation.serving import Activity, Serving, Slo
from benchmarks.simulation.workload import Workload
from cluster.autoscaling import Bounds, History, Need, Pace, decide
from cluster.planner.hardware import Device
from cluster.planner.roofline import distinct_experts
from cluster.scaling_budget import Want, share_budget
from cluster.scaling_needs import FrontDoorStats, RouterStats, Targets, experts_need, front_door_need, router_need

_DRAIN_S = 15.0
_MOST_REPLICAS = 100_000
_LONGEST_END_S = 3600.0
_DAMPING = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What all systems share."""

    model: Model
    gpu: Device
    slo: Slo = field(default_factory=Slo)
    load_bytes_per_s: float = 2e9
    """Weights per second and GPU."""
    expert_start_s: float = 10.0
    """Process and kernels of an expert replica."""
    router_start_s: float = 30.0
    """The same of a router."""
    whole_start_s: float = 88.2
    """The same of a whole model: vLLM's for Qwen3-235B on 8 H100, with its compile cache."""
    failures_per_gpu_hour: float = 1e-3
    """Replicas that die; 0: none."""
    budget: int | None = None
    """Most GPUs at any time; None: no limit."""
    place_every_s: float = 60.0
    """Seconds between placements."""
    expert_aim: float = 0.6
    """Part of their capacity that experts aim at; they are few, and every token waits for them."""
    seed: int = 0
    """Of who dies when."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What serving a workload took and gave."""

    name: str
    gpu_hours: float
    door_hours: float
    """Of front doors, which have no GPU."""
    peak_gpus: int
    requests: float
    ttft_misses: float
    token_misses: float
    lost: float
    replayed: float
    deaths: int
    copies_added: int
    """Further copies of hot experts."""
    gpus: tuple[tuple[float, int], ...]
    """(seconds, GPUs) over time, a point every few minutes."""

    @property
    def kept(self) -> float:
        """Return the part of the requests that kept the SLO."""
        return max(0.0, 1 - (self.ttft_misses + self.token_misses + self.lost) / max(self.requests, 1))

    def meets(self, slo: Slo) -> bool:
        """Tell whether enough requests did."""
        return self.kept >= slo.share

    def as_object(self) -> dict[str, Any]:
        """Return it as plain data for JSON."""
        names = [name for name in self.__slots__ if name != "gpus"]
        return {name: getattr(self, name) for name in names} | {"kept": self.kept, "gpus": [list(p) for p in self.gpus]}


def marks(aim: float) -> Pace:
    """Return the pace for a part of the capacity to aim at."""
    return Pace(high=min(aim + 0.07, 1.0), aim=aim, low=aim - 0.1)


class _Scaled:
    """A fleet that `decide` sets the size of."""

    def __init__(self, fleet: Fleet, pace: Pace) -> None:
        self.fleet = fleet
        self._pace = pace
        self._history = History()

    def wish(self, need: Need | None, now: float) -> int:
        """Return how many replicas it should have."""
        target, self._history = decide(
            need,
            present=self.fleet.present,
            running=self.fleet.running,
            bounds=Bounds(min_replicas=1, max_replicas=_MOST_REPLICAS),
            pace=self._pace,
            history=self._history,
            now=now,
        )
        return target


def _router_need(
    running: int, activity: Activity, queued: float, now: float, slo: Slo, *, experts_are_late: bool = False
) -> Need | None:
    """Return the need of units that report alike."""
    if not running:
        return Need(demand=1.0 if queued else 0.0)
    stats = RouterStats(
        at_s=now,
        kv_share=activity.kv_share,
        slot_share=activity.slot_share,
        queued_prompt_tokens=queued / running,
        prompt_tokens_per_s=activity.arriving_tokens_per_s / running,
        prefill_tokens_per_s=activity.prefill_tokens_per_s,
    )
    targets = Targets(ttft_s=slo.ttft_s, backlog_s=slo.ttft_s / 2)
    return router_need([stats] * running, targets, now, ttft_s=activity.ttft_s, experts_are_late=experts_are_late)


class _Run:
    """What every system does each step."""

    def __init__(self, name: str, setting: Setting, workload: Workload, serving: Serving) -> None:
        self.name, self.setting, self.workload, self.serving = name, setting, workload, serving
        self.chance = np.random.default_rng(setting.seed + 7)
        self.deaths = 0
        self.copies_added = 0
        self.door_seconds = 0.0
        self._points: list[tuple[float, int]] = []
        self._peak = 0
        self._every = max(1, round(300 / workload.step_s))

    def fleets(self) -> list[Fleet]:
        """Return everything that has GPUs."""
        raise NotImplementedError

    def advance(self, now: float, arriving_tokens: float) -> None:
        """Do a step, sequences included."""
        raise NotImplementedError

    def run(self) -> Outcome:
        """Serve the workload, then what is left of it."""
        work, step_s = self.workload, self.workload.step_s
        for step in range(work.num_steps):
            now, count = step * step_s, float(work.requests[step])
            prompt = float(work.prompt_tokens[step])
            self.serving.sequences.arrive(count, now, prompt, float(work.output_tokens[step]))
            self.advance(now, count * prompt)
            gpus = sum(fleet.present * fleet.gpus_each for fleet in self.fleets())
            self._peak = max(self._peak, gpus)
            if step % self._every == 0:
                self._points.append((now, gpus))
        gpu_seconds = sum(fleet.gpu_seconds for fleet in self.fleets())
        door_seconds = self.door_seconds
        self._finish(work.num_steps * step_s)
        sequences, misses = self.serving.sequences, self.serving.misses
        sequences.check()
        return Outcome(
            name=self.name,
            gpu_hours=gpu_seconds / 3600,
            door_hours=door_seconds / 3600,
            peak_gpus=self._peak,
            requests=sequences.arrived,
            ttft_misses=misses.ttft,
            token_misses=misses.token,
            lost=sequences.lost,
            replayed=sequences.replayed,
            deaths=self.deaths,
            copies_added=self.copies_added,
            gpus=tuple(self._points),
        )

    def _finish(self, now: float) -> None:
        """Go on until every request has ended; what has not after an hour counts as late."""
        end, sequences = now + _LONGEST_END_S, self.serving.sequences
        while now < end and sequences.num_waiting + sequences.num_generating > 1e-6:
            self.advance(now, 0.0)
            now += self.workload.step_s
        self.serving.misses.ttft += sequences.num_waiting

    def died(self, gpus: float) -> int:
        """Draw how many replicas die in a step."""
        expected = self.setting.failures_per_gpu_hour * gpus * self.workload.step_s / 3600
        return int(self.chance.poisson(expected)) if expected else 0


class HerdRun(_Run):
    """Herd: routers, expert groups and front doors, each scaled by itself, or not at all.

    Args:
        setting: shared.
        workload: to serve.
        routers: at the beginning.
        experts: replicas of all groups together at the beginning.
        pace: None: the numbers are fixed, and experts are balanced perfectly at no cost.
    """

    def __init__(self, setting: Setting, workload: Workload, *, routers: int, experts: int, pace: Pace | None) -> None:
        unit = RouterUnit(model=setting.model, gpu=setting.gpu)
        super().__init__(
            "herd, static" if pace is None else "herd, elastic", setting, workload, Serving(unit, setting.slo)
        )
        model, load = setting.model, setting.load_bytes_per_s
        start_s = setting.router_start_s + model.router_bytes / load
        self._routers = Fleet(gpus_each=1, start_s=start_s, drain_s=_DRAIN_S, running=routers)
        self._doors = Fleet(gpus_each=0, start_s=5.0, running=1)
        self._pool = ExpertPool(
            model,
            setting.gpu,
            start_s=setting.expert_start_s,
            load_bytes_per_s=load,
            place_every_s=setting.place_every_s,
            is_placed=pace is not None,
        )
        self._is_static = pace is None
        self._spread(experts)
        pace = pace or Pace()
        self._scaled_routers, self._scaled_doors = _Scaled(self._routers, pace), _Scaled(self._doors, Pace())
        self._scaled_groups = [_Scaled(fleet, marks(setting.expert_aim)) for fleet in self._pool.fleets]
        self._seconds = 0.0
        self._throttle = 1.0
        self._last = Activity()
        dispatch = distinct_experts(model.group_experts, 64 / model.groups)
        self._dispatch_s = dispatch * pass_s(model, setting.gpu)

    def fleets(self) -> list[Fleet]:
        """Return routers and expert groups."""
        return [self._routers, *self._pool.fleets]

    def _spread(self, experts: int) -> None:
        """Begin with replicas of each group as its experts are popular; at least one."""
        size = self.setting.model.group_experts
        parts = self.workload.popularity_at(0.0).reshape(-1, size).sum(axis=1)
        if self._is_static:
            parts = np.full(len(parts), 1 / len(parts))
        whole = np.maximum(np.floor(parts * experts).astype(int), 1)
        while whole.sum() < experts:
            whole[int(np.argmax(parts * experts / whole))] += 1
        for fleet, count in zip(self._pool.fleets, whole, strict=True):
            fleet.running = int(count)

    def advance(self, now: float, arriving_tokens: float) -> None:
        """Let replicas come and die, compute, then decide."""
        step_s, setting = self.workload.step_s, self.setting
        self._routers.advance(now, step_s)
        self._pool.advance(now, step_s)
        self._doors.advance(now, step_s)
        self.door_seconds += self._doors.present * step_s
        self._die(now)
        popularity = self.workload.popularity_at(now)
        plain, special, busiest = self._expert_use(popularity)
        self._throttle = 0.0 if math.isinf(busiest) else min(1.0, 0.95 / max(busiest, 1e-9))
        activity = self._last = self.serving.step(
            self._routers.running,
            now,
            step_s,
            arriving_tokens=arriving_tokens,
            expert_use=min(busiest, 0.95),
            throttle=self._throttle,
        )
        if self._throttle:
            wanted = expert_seconds(
                setting.model,
                setting.gpu,
                batch=activity.batch,
                steps_per_s=activity.steps_per_s,
                prompt_tokens_per_s=activity.prompt_tokens_per_s,
            )
            # What experts are asked for follows from how fast they answer: damped, or the two would chase each other.
            self._seconds += _DAMPING * (wanted / self._throttle - self._seconds)
        if not self._is_static:
            self._pool.place(self._seconds * self._throttle, popularity, now)
            self._scale(plain, special, now)

    def _expert_use(self, popularity: Any) -> tuple[list[float], dict[str, float], float]:
        if self._is_static:
            running = sum(fleet.running for fleet in self._pool.fleets)
            alone = any(not fleet.running for fleet in self._pool.fleets)
            use = math.inf if alone else self._seconds / running
            return [], {}, use
        plain, special = self._pool.loads(self._seconds, popularity)
        return plain, special, max([*plain, *special.values()])

    def _die(self, now: float) -> None:
        """Let replicas die: routers' sequences are replayed elsewhere, experts' are only slower."""
        fleets = self.fleets()
        for _ in range(self.died(sum(fleet.running for fleet in fleets))):
            self.deaths += 1
            running = np.array([fleet.running for fleet in fleets], dtype=np.float64)
            index = int(self.chance.choice(len(fleets), p=running / running.sum()))
            if index == 0:
                self.serving.sequences.replay(self.serving.at_once / self._routers.running)
                self._routers.fail(1, now)
            else:
                self._pool.fail(index - 1, int(self.chance.integers(1 << 30)), now)

    def _scale(self, plain: list[float], special: dict[str, float], now: float) -> None:
        """Ask Herd's policies, share the budget, obey."""
        setting, sequences = self.setting, self.serving.sequences
        in_flight = sequences.num_generating + sequences.num_waiting
        doors = max(self._doors.running, 1)
        door = FrontDoorStats(
            at_s=now, sequences=in_flight / doors, queued_prompt_tokens=sequences.waiting_tokens / doors
        )
        self._doors.set_target(self._scaled_doors.wish(front_door_need([door] * doors, Targets(), now), now), now)
        needs: list[Need | None] = []
        for group in range(len(self._scaled_groups)):
            stats = self._pool.stats(group, plain[group], special, self._dispatch_s, now)
            needs.append(experts_need(stats, Targets(), now))
        late = self._throttle < 1 or any(need is not None and need.lateness > 1 for need in needs)
        queued, running = sequences.waiting_tokens, self._routers.running
        need = _router_need(running, self._last, queued, now, setting.slo, experts_are_late=late)
        scaled = {"routers": (self._scaled_routers, need)}
        scaled |= {str(group): pair for group, pair in enumerate(zip(self._scaled_groups, needs, strict=True))}
        wants = {
            name: Want(wanted=each.wish(need, now), present=each.fleet.present, least=1)
            for name, (each, need) in scaled.items()
        }
        for name, share in share_budget(wants, setting.budget).items():
            scaled[name][0].fleet.set_target(share, now)
        self.copies_added = self._pool.num_copies_added


class WholeRun(_Run):
    """Replicas of the whole model, scaled by the policy that scales Herd's routers.

    Args:
        setting: shared.
        workload: to serve.
        replicas: at the beginning.
        pace: of scaling; None: the number is fixed.
    """

    def __init__(self, setting: Setting, workload: Workload, *, replicas: int, pace: Pace | None) -> None:
        unit = WholeUnit(model=setting.model, gpu=setting.gpu)
        name = "whole models, static" if pace is None else "whole models, elastic"
        super().__init__(name, setting, workload, Serving(unit, setting.slo))
        load_s = setting.model.total_bytes / (setting.load_bytes_per_s * unit.num_gpus)
        self._fleet = Fleet(
            gpus_each=unit.num_gpus, start_s=setting.whole_start_s + load_s, drain_s=_DRAIN_S, running=replicas
        )
        self._scaled = _Scaled(self._fleet, pace) if pace else None

    def fleets(self) -> list[Fleet]:
        """Return the one fleet."""
        return [self._fleet]

    def advance(self, now: float, arriving_tokens: float) -> None:
        """Let replicas come and die, compute, then decide."""
        step_s, sequences = self.workload.step_s, self.serving.sequences
        self._fleet.advance(now, step_s)
        for _ in range(min(self.died(self._fleet.running * self._fleet.gpus_each), self._fleet.running)):
            # A gateway before the replicas keeps what waits; what a dead replica had computed is gone.
            self.deaths += 1
            sequences.lose(self.serving.at_once / self._fleet.running)
            self._fleet.fail(1, now)
        activity = self.serving.step(
            self._fleet.running, now, step_s, arriving_tokens=arriving_tokens, expert_use=0.0, throttle=1.0
        )
        if self._scaled is None:
            return
        need = _router_need(self._fleet.running, activity, sequences.waiting_tokens, now, self.setting.slo)
        target = self._scaled.wish(need, now)
        if self.setting.budget is not None:
            target = min(target, self.setting.budget // self._fleet.gpus_each)
        self._fleet.set_target(target, now)
