"""The policies as Ray Serve calls them, and what they share. No Ray runs."""

from __future__ import annotations

import dataclasses
import uuid
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.autoscaling import Bounds, Pace
from cluster.byte_text import format_bytes
from cluster.config_source import load_config
from cluster.first_tokens import FirstTokenMeter
from cluster.machine import Machine
from cluster.meters import ExpertMeter, RateMeter
from cluster.metrics import FrontDoorMetrics
from cluster.plan import make_plan
from cluster.scaling_board import Entry, ScalingBoard
from cluster.scaling_budget import Want
from cluster.scaling_needs import Targets
from experts.batcher import BatcherTimes
from models.checkpoint import open_checkpoint
from protos.errors import BadConfig, NotEnoughMemory

# Importing Ray Serve warns of its own use of pydantic; so it is imported in here.
pytestmark = pytest.mark.filterwarnings("ignore")
LAPTOP = Machine(cores=8, free_bytes=16 * 1024**3)


_application = [""]


@pytest.fixture(autouse=True)
def _fresh_board():
    """Let every test have an application, and so a board, of its own."""
    _application[0] = uuid.uuid4().hex


@dataclass
class Point:
    timestamp: float
    value: float


@dataclass
class Context:
    """What a policy reads of Ray's AutoscalingContext."""

    deployment_name: str
    stats: dict[str, dict[str, float]]  # replica -> name -> value
    present: int
    app_name: str = field(default_factory=lambda: _application[0])
    current_time: float = 100.0
    measured_at: float = 100.0
    capacity_adjusted_min_replicas: int = 1
    capacity_adjusted_max_replicas: int = 10
    policy_state: dict[str, Any] = field(default_factory=dict)
    silent: tuple[str, ...] = ()

    @property
    def running_replicas(self) -> list[str]:
        return [*self.stats, *self.silent]

    @property
    def current_num_replicas(self) -> int:
        return len(self.running_replicas)

    @property
    def target_num_replicas(self) -> int:
        return self.present

    @property
    def aggregated_metrics(self) -> dict[str, dict[str, float]]:
        names = {name for values in self.stats.values() for name in values}
        return {name: {replica: values[name] for replica, values in self.stats.items()} for name in names}

    @property
    def raw_metrics(self) -> dict[str, dict[str, list[Point]]]:
        return {
            name: {replica: [Point(self.measured_at, value)] for replica, value in values.items()}
            for name, values in self.aggregated_metrics.items()
        }


def make(kind: str, **others: Any):
    from cluster import scaling_policies

    arguments = {
        "pace": dataclasses.asdict(Pace(up_after_s=0.0)),
        "targets": dataclasses.asdict(Targets()),
        "sharing": ["Router", "Experts-0"],
    }
    return getattr(scaling_policies, kind)(**(arguments | others))


def busy(use: float, queue_s: float = 0.0) -> dict[str, float]:
    return {"tokens_per_s": use * 1000, "capacity_tokens_per_s": 1000.0, "queue_s": queue_s}


def routing(slots: float, waiting: float = 0.0) -> dict[str, float]:
    return {
        "kv_share": 0.1,
        "slot_share": slots,
        "queued_prompt_tokens": waiting,
        "prompt_tokens_per_s": 0.0,
        "prefill_tokens_per_s": 1000.0,
    }


def test_busy_experts_grow():
    wanted, _ = make("ExpertsPolicy")(Context("Experts-0", {"a": busy(0.9), "b": busy(0.9)}, present=2))
    assert wanted == 3


def test_history_lives_in_the_state_that_ray_keeps():
    policy = make("ExpertsPolicy")
    context = Context("Experts-0", {"a": busy(0.0), "b": busy(0.0)}, present=2)
    wanted, context.policy_state = policy(context)
    context.current_time = context.measured_at = 100.0 + Pace().down_after_s
    assert (wanted, policy(context)[0]) == (2, 1)


def test_a_replica_that_has_said_nothing_yet_holds_the_number():
    context = Context("Experts-0", {"a": busy(1.0, queue_s=1.0)}, present=2, silent=("b",))
    assert make("ExpertsPolicy")(context)[0] == 2


def test_old_stats_hold_the_number():
    context = Context("Experts-0", {"a": busy(1.0, queue_s=1.0)}, present=1, measured_at=80.0)
    assert make("ExpertsPolicy")(context)[0] == 1


def test_a_deployment_whose_replicas_all_start_keeps_its_number():
    assert make("RouterPolicy")(Context("Router", {}, present=3))[0] == 3


def test_routers_grow_when_front_doors_see_late_first_tokens():
    doors = {"sequences": 1.0, "queued_prompt_tokens": 0.0, "ttft_s": 9.0}
    make("FrontDoorPolicy")(Context("FrontDoor", {"door": doors}, present=1))
    assert make("RouterPolicy")(Context("Router", {"a": routing(0.3)}, present=1))[0] == 2


def test_routers_stay_while_dispatches_wait_for_experts():
    make("ExpertsPolicy")(Context("Experts-0", {"a": busy(1.0, queue_s=1.0)}, present=1))
    assert make("RouterPolicy")(Context("Router", {"a": routing(1.0, waiting=9000.0)}, present=1))[0] == 1


def test_front_doors_are_never_taken_away():
    idle = {"sequences": 0.0, "queued_prompt_tokens": 0.0, "ttft_s": 0.0}
    policy = make("FrontDoorPolicy", pace=dataclasses.asdict(Pace(down_after_s=0.001)))
    context = Context("FrontDoor", {"a": idle, "b": idle}, present=2)
    for _ in range(3):
        wanted, context.policy_state = policy(context)
        context.current_time = context.measured_at = context.current_time + 100
    assert wanted == 2


def test_a_budget_is_kept_by_policies_that_are_asked_one_after_the_other():
    routers, experts = (make(kind, budget=5) for kind in ("RouterPolicy", "ExpertsPolicy"))
    full = Context("Router", {name: routing(1.5) for name in "ab"}, present=2)
    hot = Context("Experts-0", {name: busy(1.0) for name in "cd"}, present=2)
    for _ in range(5):
        full.present = routers(full)[0]
        hot.present = experts(hot)[0]
        assert full.present + hot.present <= 5
    assert full.present + hot.present == 5


def test_nothing_grows_before_every_deployment_was_heard():
    board = ScalingBoard()
    board.note("a", Entry(want=Want(wanted=4, present=2)))
    assert board.share("a", ["a", "b"], 10) == 2
    board.note("b", Entry(want=Want(wanted=1, present=1)))
    assert board.share("a", ["a", "b"], 10) == 4


def test_what_others_still_have_is_not_given_twice():
    board = ScalingBoard()
    board.note("a", Entry(want=Want(wanted=4, present=1)))
    board.note("b", Entry(want=Want(wanted=1, present=4)))
    assert board.share("a", ["a", "b"], 5) == 1


# How many there are, from the settings.


def options(demo_dir, *assignments):
    from cluster.serve_scaling import experts_replicas, front_door_replicas, router_replicas

    plan = make_plan(load_config(assignments=assignments), open_checkpoint(demo_dir), "demo", LAPTOP)
    return [each(plan) for each in (front_door_replicas, router_replicas, experts_replicas)]


def test_numbers_are_fixed_by_default(demo_dir):
    assert options(demo_dir, "router.replicas=2") == [{"num_replicas": 1}, {"num_replicas": 2}, {"num_replicas": 1}]


def test_one_maximum_above_its_minimum_lets_every_policy_be_asked(demo_dir):
    found = [each["autoscaling_config"] for each in options(demo_dir, "scaling.experts_max_replicas=3")]
    assert [(each.min_replicas, each.initial_replicas, each.max_replicas) for each in found] == [
        (1, 1, 1),
        (1, 1, 1),
        (1, 1, 3),
    ]
    assert [each.policy.policy_function.partition(":")[2] for each in found] == [
        "FrontDoorPolicy",
        "RouterPolicy",
        "ExpertsPolicy",
    ]
    for each in found:
        each.policy.get_policy()(**each.policy.policy_kwargs)


def test_memory_is_planned_for_as_many_as_there_may_be(demo_dir):
    checkpoint = open_checkpoint(demo_dir)
    fixed = make_plan(load_config(), checkpoint, "demo", LAPTOP)
    scaled = make_plan(load_config(assignments=["scaling.experts_max_replicas=3"]), checkpoint, "demo", LAPTOP)
    assert scaled.weight_bytes > fixed.weight_bytes
    assert (fixed.num_replicas, scaled.num_replicas) == (3, 7)
    small = Machine(cores=8, free_bytes=(fixed.needed_bytes + scaled.needed_bytes) // 2)
    with pytest.raises(NotEnoughMemory, match=f"found {format_bytes(small.free_bytes)}".replace(".", r"\.")):
        make_plan(load_config(assignments=["scaling.experts_max_replicas=3"]), checkpoint, "demo", small)


def test_a_budget_below_what_starts_is_refused(demo_dir):
    with pytest.raises(BadConfig, match="at least 3"):
        options(demo_dir, "scaling.budget=2")


def test_bounds_default_to_the_number_there_is():
    config = load_config(assignments=["router.replicas=2", "scaling.router_max_replicas=5"])
    assert config.scaling.routers(2) == Bounds(min_replicas=2, max_replicas=5)
    config.scaling.pace(0.85).check()


# What replicas report.


def test_a_rate_is_growth_over_time():
    meter = RateMeter()
    assert [meter.read(total, now) for total, now in ((10, 1.0), (30, 3.0), (30, 4.0))] == [0.0, 10.0, 0.0]


def test_an_expert_replica_reports_its_rate_its_capacity_and_its_queue_in_seconds():
    batcher = SimpleNamespace(total_tokens=0, queued_tokens=0, times=BatcherTimes())
    meter = ExpertMeter(batcher)
    assert meter.stats(1.0)["capacity_tokens_per_s"] == 0.0
    batcher.total_tokens, batcher.queued_tokens, batcher.times = 500, 40, BatcherTimes(busy_s=0.25)
    assert meter.stats(2.0) == {"tokens_per_s": 500.0, "capacity_tokens_per_s": 2000.0, "queue_s": 0.02}
    batcher.queued_tokens = 0
    assert meter.stats(3.0) == {"tokens_per_s": 0.0, "capacity_tokens_per_s": 2000.0, "queue_s": 0.0}


def test_first_tokens_are_those_since_the_last_look():
    metrics = FrontDoorMetrics("demo")
    meter = FirstTokenMeter(metrics)
    assert meter.mean_s() == 0.0
    metrics.stopwatch().tokens(0, 1)
    assert 0 < meter.mean_s() < 1
    assert meter.mean_s() == 0.0
