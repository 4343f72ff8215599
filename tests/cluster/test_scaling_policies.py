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
from cluster.front_door_metrics import FrontDoorMetrics
from cluster.machine import Machine
from cluster.meters import ExpertMeter, RateMeter
from cluster.plan import make_plan
from cluster.scaling_board import Entry, ScalingBoard
from cluster.scaling_budget import Want
from cluster.scaling_needs import Targets
from experts.batcher import BatcherTimes
from models.checkpoint import open_checkpoint
from protos.errors import BadConfig, NotEnoughMemory

# Importing Ray Serve warns of its own use of pydantic; so it is imported in here.
pytestmark = pytest.mark.filterwarnings("ignore")
ZERO_AFTER_S = 300.0
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
        "zero_after_s": ZERO_AFTER_S,
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


def door_stats(sequences: float, idle_s: float, ttft_s: float = 0.0, **long: float) -> dict[str, float]:
    stats = {"sequences": sequences, "queued_prompt_tokens": 0.0, "idle_s": idle_s, "ttft_s": ttft_s}
    return stats | {"long_sequences": 0.0, "long_idle_s": 1e9} | long


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


# None, where that is allowed.


@dataclass
class Cluster:
    """A front door, routers and one group, asked ten times a second as Ray does; a replica starts in `start_s`."""

    least: int = 0
    least_experts: int = 0
    routers: int = 1
    experts: int = 1
    budget: int | None = None
    start_s: float = 8.0
    now: float = 1000.0
    sequences: int = 0
    idle_since: float = 1000.0

    def __post_init__(self) -> None:
        fast = dataclasses.asdict(Pace(down_after_s=1.0))
        self._policies = {
            "FrontDoor": make("FrontDoorPolicy"),
            "Router": make("RouterPolicy", pace=fast, budget=self.budget),
            "Experts-0": make("ExpertsPolicy", pace=fast, budget=self.budget),
        }
        self._states: dict[str, dict[str, Any]] = {name: {} for name in self._policies}
        self._ready_at: dict[str, float] = {}
        self.ttft_s = 0.0
        self.most = 0

    def run(self, seconds: float, sequences: int) -> tuple[int, int]:
        """Let time pass; return how many routers and experts there should be then."""
        for _ in range(round(10 * seconds)):
            self.now += 0.1
            if sequences or self.sequences:
                self.idle_since = self.now
            self.sequences = sequences
            self._ask_all()
            self.most = max(self.most, self.routers + self.experts)
        return self.routers, self.experts

    def _ask_all(self) -> None:
        idle_s = 0.0 if self.sequences else self.now - self.idle_since
        doors = door_stats(self.sequences, idle_s, self.ttft_s)
        self._ask("FrontDoor", doors, 1, 1)
        # Whoever waits for a start holds no slot.
        self.routers = self._ask("Router", routing(0.1 * min(self.sequences, 1)), self.routers, self.least)
        self.experts = self._ask("Experts-0", busy(0.1 * min(self.sequences, 1)), self.experts, self.least_experts)

    def _ask(self, name: str, stats: dict[str, float], present: int, least: int) -> int:
        if not present:
            self._ready_at[name] = self.now + self.start_s
        runs = present and self.now >= self._ready_at.get(name, 0.0)
        context = Context(
            name,
            {str(index): stats for index in range(present if runs else 0)},
            present,
            current_time=self.now,
            measured_at=self.now,
            capacity_adjusted_min_replicas=least,
            policy_state=self._states[name],
        )
        wanted, self._states[name] = self._policies[name](context)
        return wanted


def test_all_go_when_nobody_has_asked_for_long_enough_and_come_back_with_the_next_sequence():
    cluster = Cluster()
    assert cluster.run(ZERO_AFTER_S - 1, sequences=0) == (1, 1)
    assert cluster.run(2, sequences=0) == (0, 1)
    assert cluster.run(600, sequences=0) == (0, 0)
    assert cluster.run(0.1, sequences=1) == (1, 1)
    assert cluster.run(60, sequences=1) == (1, 1)


def test_whoever_hangs_up_before_a_router_started_starts_one_all_the_same_and_once():
    cluster = Cluster()
    cluster.run(ZERO_AFTER_S + 4, sequences=0)
    cluster.run(0.5, sequences=1)
    assert cluster.run(ZERO_AFTER_S - 1, sequences=0) == (1, 1)
    assert cluster.run(4, sequences=0) == (0, 0)


def test_a_sequence_that_meets_the_last_router_going_keeps_its_experts():
    cluster = Cluster()
    assert cluster.run(ZERO_AFTER_S + 1, sequences=0) == (0, 1)
    assert cluster.run(5, sequences=1) == (1, 1)


def test_requests_that_keep_coming_keep_the_last_replica():
    cluster = Cluster()
    found = {cluster.run(ZERO_AFTER_S - 1, sequences=0) for _ in range(3) if cluster.run(0.3, sequences=1)}
    assert found == {(1, 1)}


def test_several_go_one_by_one_until_none_is_left():
    cluster = Cluster(routers=3, experts=2)
    assert cluster.run(10, sequences=0) == (1, 1)
    assert cluster.run(ZERO_AFTER_S, sequences=0) == (0, 0)


@pytest.mark.parametrize("least_experts", [0, 1])
def test_the_wait_for_the_first_router_asks_for_no_second_one(least_experts):
    cluster = Cluster(least_experts=least_experts)
    cluster.run(ZERO_AFTER_S + 4, sequences=0)
    cluster.run(cluster.start_s, sequences=1)
    cluster.ttft_s = cluster.start_s  # of those who waited for the start
    assert cluster.run(3, sequences=1) == (1, 1)
    assert cluster.run(10, sequences=1)[0] > 1, "what is late after that is late for want of routers"


def test_nor_does_the_wait_for_the_first_experts_where_routers_stay():
    make("FrontDoorPolicy")(Context("FrontDoor", {"a": door_stats(1.0, 0.0, 9.0)}, 1))
    assert make("ExpertsPolicy")(Context("Experts-0", {}, 0, capacity_adjusted_min_replicas=0))[0] == 1
    assert make("RouterPolicy")(Context("Router", {"a": routing(0.3)}, present=1))[0] == 1


def test_others_give_way_to_whoever_has_none():
    cluster = Cluster(routers=3, experts=0, budget=3)
    assert cluster.run(1, sequences=1) == (2, 1)
    assert cluster.most == 3


def test_where_none_is_not_allowed_the_last_replica_stays():
    assert Cluster(least=1, least_experts=1).run(ZERO_AFTER_S + 10, sequences=0) == (1, 1)


def test_a_front_door_that_is_not_heard_keeps_what_there_is():
    router = make("RouterPolicy")
    for present in (0, 1):
        board_has_nothing = Context("Router", {"a": routing(0.0)} if present else {}, present)
        board_has_nothing.capacity_adjusted_min_replicas = 0
        assert router(board_has_nothing)[0] == present


# Routers for long requests.


def asked(kind: str, name: str, doors: dict[str, float], present: int, **stats: float) -> int:
    """Return what a policy wants that may have none, after the front door's was asked."""
    make("FrontDoorPolicy")(Context("FrontDoor", {"door": doors}, present=1))
    replicas = {"a": routing(0.5) | {"slots": 2.0} | stats} if present else {}
    context = Context(name, replicas, present, capacity_adjusted_min_replicas=0)
    return make(kind, sharing=["Router", "LongRouter", "Experts-0"])(context)[0]


@pytest.mark.parametrize(
    ("kind", "name", "sequences", "long_sequences", "expected"),
    [
        ("RouterPolicy", "Router", 1, 0, 1),
        ("RouterPolicy", "Router", 0, 1, 0),
        ("LongRouterPolicy", "LongRouter", 1, 0, 0),
        ("LongRouterPolicy", "LongRouter", 0, 1, 1),
        ("ExpertsPolicy", "Experts-0", 1, 0, 1),
        ("ExpertsPolicy", "Experts-0", 0, 1, 1),
    ],
)
def test_each_class_wakes_its_own_routers_and_either_wakes_experts(kind, name, sequences, long_sequences, expected):
    idle = {True: 0.0, False: 1000.0}
    doors = door_stats(
        sequences, idle[sequences > 0], long_sequences=long_sequences, long_idle_s=idle[long_sequences > 0]
    )
    assert asked(kind, name, doors, present=0) == expected


@pytest.mark.parametrize(("long_sequences", "expected"), [(1, 1), (2, 2), (5, 2)])
def test_long_routers_grow_with_the_line_and_not_with_the_time_of_a_prompt(long_sequences, expected):
    doors = door_stats(0, 0, ttft_s=900.0, long_sequences=long_sequences, long_idle_s=0.0)
    slow = {"queued_prompt_tokens": 60_000.0, "prefill_tokens_per_s": 100.0}
    assert asked("LongRouterPolicy", "LongRouter", doors, present=1, **slow) == expected


SHARDED = {"sharing": ["Router", "LongRouter", "Context"], "pace": dataclasses.asdict(Pace(up_after_s=0.0, high=0.9))}


def shards_wanted(
    present: int, standard: float | None, long: float | None, *, now: float = 100.0, state: dict[str, Any] | None = None
) -> tuple[int, dict[str, Any]]:
    """Return how many context shards of a thousand tokens there should be, and the policy's state.

    Args:
        present: there are.
        standard: tokens that sequences of the routers want; None: the routers have said nothing.
        long: of those for long requests; None: none of them runs.
        now: in seconds.
        state: as returned last.
    """
    wanting = {} if standard is None else {"r": routing(0.1) | {"context_wanted_tokens": standard}}
    waiting = {"l": routing(0.1) | {"slots": 2.0, "context_wanted_tokens": long}} if long is not None else {}
    times = {"current_time": now, "measured_at": now}
    make("RouterPolicy", **SHARDED)(Context("Router", wanting, 1, silent=() if wanting else ("r",), **times))
    make("LongRouterPolicy", **SHARDED)(Context("LongRouter", waiting, 1, **times))
    held = {str(number): {"total_tokens": 1000.0} for number in range(present)}
    context = Context("Context", held, present, policy_state=state or {}, **times)
    return make("ContextPolicy", **SHARDED)(context)


@pytest.mark.parametrize(
    ("present", "standard", "long", "expected"),
    [
        (1, 0.0, None, 1),
        (1, 800.0, None, 1),
        (1, 1000.0, None, 2),
        (2, 500.0, 2000.0, 4),  # at most twice as many at once
        (2, 0.0, 9000.0, 4),
        (2, None, 9000.0, 2),
    ],
)
def test_context_shards_come_while_sequences_want_more_than_there_is_room_for(present, standard, long, expected):
    assert shards_wanted(present, standard, long)[0] == expected


@pytest.mark.parametrize(("tokens", "expected"), [(0.0, 2), (1.0, 3)])
def test_none_of_them_goes_while_any_sequence_has_tokens_there(tokens, expected):
    _, state = shards_wanted(3, tokens, None)
    assert shards_wanted(3, tokens, None, now=1000.0, state=state)[0] == expected


def test_nor_at_once_when_the_last_tokens_have_gone():
    state: dict[str, Any] | None = None
    for second in range(100, 165):
        wanted, state = shards_wanted(3, 300.0, None, now=second, state=state)
        assert wanted == 3
    assert shards_wanted(3, 0.0, None, now=165, state=state)[0] == 3


# How many there are, from the settings.


def options(demo_dir, *assignments):
    from cluster.serve_scaling import experts_replicas, front_door_replicas, router_replicas

    plan = make_plan(load_config(assignments=assignments), open_checkpoint(demo_dir), "demo", LAPTOP)
    routers = [router_replicas(plan, name) for name in plan.pools]
    return [front_door_replicas(plan), *routers, experts_replicas(plan)]


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


def test_routers_for_long_requests_have_bounds_and_a_policy_of_their_own(demo_dir):
    long = ("long.from_tokens=1000", "long.min_replicas=0", "long.max_replicas=3", "router.replicas=2")
    found = [each["autoscaling_config"] for each in options(demo_dir, *long)]
    assert [(each.min_replicas, each.initial_replicas, each.max_replicas) for each in found] == [
        (1, 1, 1),
        (2, 2, 2),
        (0, 1, 3),
        (1, 1, 1),
    ]
    assert found[2].policy.policy_function.endswith(":LongRouterPolicy")
    assert found[2].policy.policy_kwargs["sharing"] == ["Router", "LongRouter", "Experts-0", "Experts-1"]


def test_none_is_allowed_for_routers_and_experts_only(demo_dir):
    least = ("scaling.router_min_replicas=0", "scaling.experts_min_replicas=0", "scaling.zero_after_s=7")
    found = [each["autoscaling_config"] for each in options(demo_dir, *least)]
    assert [(each.min_replicas, each.initial_replicas, each.max_replicas) for each in found] == [
        (1, 1, 1),
        (0, 1, 1),
        (0, 1, 1),
    ]
    assert {each.policy.policy_kwargs["zero_after_s"] for each in found} == {7.0}


def test_memory_is_planned_for_as_many_as_there_may_be(demo_dir):
    checkpoint = open_checkpoint(demo_dir)
    fixed = make_plan(load_config(), checkpoint, "demo", LAPTOP)
    scaled = make_plan(load_config(assignments=["scaling.experts_max_replicas=3"]), checkpoint, "demo", LAPTOP)
    assert scaled.weight_bytes > fixed.weight_bytes
    assert (fixed.num_replicas, scaled.num_replicas) == (3, 7)
    small = Machine(cores=8, free_bytes=(fixed.needed_bytes + scaled.needed_bytes) // 2)
    with pytest.raises(NotEnoughMemory, match=f"found {format_bytes(small.free_bytes)}".replace(".", r"\.")):
        make_plan(load_config(assignments=["scaling.experts_max_replicas=3"]), checkpoint, "demo", small)


def test_context_shards_share_the_budget_and_have_bounds(demo_dir):
    from cluster.serve_scaling import context_replicas

    settings = load_config(assignments=["context.shards=2", "context.max_shards=5", "scaling.budget=20"])
    found = context_replicas(make_plan(settings, open_checkpoint(demo_dir), "demo", LAPTOP))["autoscaling_config"]
    assert (found.min_replicas, found.initial_replicas, found.max_replicas) == (2, 2, 5)
    assert found.policy.policy_function.endswith(":ContextPolicy")
    assert found.policy.policy_kwargs["sharing"] == ["Router", "Experts-0", "Experts-1", "Context"]


def test_a_budget_below_what_starts_is_refused(demo_dir):
    with pytest.raises(BadConfig, match="at least 3"):
        options(demo_dir, "scaling.budget=2")
    with pytest.raises(BadConfig, match=r"at least 5.*context shards"):
        options(demo_dir, "context.shards=2", "scaling.budget=4")


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
    metrics.stopwatch("long", [], 1).tokens(0, 1)
    assert meter.mean_s() == 0.0, "long prompts take their time, however many routers there are"
    metrics.stopwatch("standard", [], 1).tokens(0, 1)
    assert 0 < meter.mean_s() < 1
    assert meter.mean_s() == 0.0
