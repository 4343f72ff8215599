"""The simulator: answers worked out by hand, nobody lost from the books, and no time spent waiting."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.simulate import compare, parse, setting_of, workload_of
from benchmarks.simulation.experts import ExpertPool
from benchmarks.simulation.fleet import Fleet
from benchmarks.simulation.hardware import MAVERICK, SCOUT, kv_bytes
from benchmarks.simulation.report import as_table, draw
from benchmarks.simulation.roofline import RouterUnit, WholeUnit, most_sequences
from benchmarks.simulation.sequences import Sequences
from benchmarks.simulation.serving import Slo
from benchmarks.simulation.sizing import smallest
from benchmarks.simulation.systems import HerdRun, Setting, WholeRun, marks
from benchmarks.simulation.workload import Day, made_up, recorded, zipf
from cluster.bench.traces import TraceRow
from cluster.planner.hardware import H100
from cluster.planner.roofline import distinct_experts
from protos.errors import InvalidRequest

SETTING = Setting(model=MAVERICK, gpu=H100)


def day(peak_per_s=20.0, hours=0.5, seed=0, **others):
    popularity = zipf(128, 0.5, periods=3, drift=0.1, seed=seed)
    return made_up(
        Day(peak_per_s=peak_per_s, hours=hours, trough=1.0, **others),
        step_s=5.0,
        popularity=popularity,
        period_s=3600.0,
        seed=seed,
    )


def test_models_weigh_what_their_shapes_say():
    assert SCOUT.router_bytes == pytest.approx(22.27e9, rel=1e-3)
    assert MAVERICK.router_bytes == pytest.approx(28.33e9, rel=2e-3)
    assert replace(SCOUT, expert_format="bf16").expert_bytes == pytest.approx(12.08e9, rel=1e-3)
    assert replace(MAVERICK, expert_format="bf16").total_bytes == pytest.approx(801.4e9, rel=2e-3)


def test_keys_and_values_grow_in_twelve_layers_only_beyond_a_chunk():
    assert kv_bytes(8192) == 1_610_612_736
    assert kv_bytes(131_072) == pytest.approx(7.65e9, rel=1e-3)


def test_a_batch_reaches_as_many_experts_as_chance_says():
    assert distinct_experts(16, 32) == pytest.approx(14.0, abs=0.05)
    assert distinct_experts(128, 128) == pytest.approx(81.1, abs=0.05)


def test_a_router_with_one_sequence_reads_its_weights_and_hops_through_every_layer():
    unit = RouterUnit(model=SCOUT, gpu=H100, hop_s=0.001)
    reading = 2 * SCOUT.router_weights / (0.74 * 3.35e12)
    experts = distinct_experts(4, 0.25) * 125_829_120 / (0.74 * 3.35e12)
    assert unit.decode_step_s(1, 0, 0.0) == pytest.approx(reading + 48 * (0.001 + experts), rel=1e-6)


def test_a_unit_takes_as_many_sequences_as_keep_the_token_in_time():
    unit = WholeUnit(model=MAVERICK, gpu=H100)
    most = most_sequences(unit, 8192, 0.1)
    assert most == unit.kv_bytes / kv_bytes(8192)
    tight = most_sequences(unit, 8192, 0.03)
    assert unit.decode_step_s(tight, 8192, 0.7) * 1.75 == pytest.approx(0.03)


def test_replicas_work_once_they_have_started_and_cost_from_the_decision_on():
    fleet = Fleet(gpus_each=2, start_s=10.0, drain_s=3.0, running=1)
    fleet.set_target(3, 0.0)
    fleet.advance(5.0, 5.0)
    assert (fleet.running, fleet.present, fleet.gpu_seconds) == (1, 3, 30.0)
    fleet.advance(10.0, 5.0)
    assert (fleet.running, fleet.gpu_seconds) == (3, 60.0)
    fleet.set_target(2, 10.0)
    assert (fleet.running, fleet.gpu_seconds) == (2, 66.0)


def test_replicas_that_have_not_started_go_first():
    fleet = Fleet(gpus_each=1, start_s=10.0, running=2)
    fleet.set_target(4, 0.0)
    fleet.set_target(3, 1.0)
    assert (fleet.running, len(fleet.ready_at)) == (2, 1)


def test_prompts_are_computed_in_order_and_wait_for_those_before():
    sequences = Sequences()
    sequences.arrive(2, 0.0, 100, 10)
    sequences.arrive(2, 5.0, 100, 10)
    assert sequences.prefill(100, 99, 0.0, 5.0)[0].cohort.count == 1
    first, second = sequences.prefill(200, 99, 5.0, 5.0)
    assert (first.cohort.count, first.wait_s) == (1, 5 + 1.25)
    assert (second.cohort.count, second.wait_s) == (1, 0.0)
    assert sequences.num_waiting == 1


def test_what_rounding_leaves_of_a_steps_tokens_is_used_for_nothing():
    sequences = Sequences()
    sequences.arrive(50, 0.0, 112.75345128697109, 10)
    (part,) = sequences.prefill(4059, 99, 0.0, 5.0)
    assert part.cohort.count == pytest.approx(36.0, rel=1e-4)


def test_answers_end_when_their_last_token_has_come():
    sequences = Sequences()
    sequences.arrive(3, 0.0, 100, 10)
    sequences.prefill(300, 99, 0.0, 5.0)
    assert sequences.generate(8, 0.0, 5.0) == []
    ((cohort, seconds_per_token),) = sequences.generate(8, 5.0, 5.0)
    assert (cohort.count, sequences.finished) == (3, 3)
    assert seconds_per_token == pytest.approx((5 + 5 * 2 / 8) / 10)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5000), st.floats(0, 50), st.floats(0, 1)), max_size=40))
@example([(0, 0, 0.0, 0.0), (0, 0, 0.0, 0.0), (1, 0, 0.0, 0.0), (0, 1, 0.0, 1.0), (0, 0, 0.0, 0.0)])  # all replayed
def test_every_request_is_counted_once_whatever_happens(steps):
    sequences = Sequences()
    for index, (count, tokens, each, part) in enumerate(steps):
        sequences.arrive(count, index * 5.0, 100, 20)
        sequences.prefill(tokens, 30, index * 5.0, 5.0)
        sequences.generate(each, index * 5.0, 5.0)
        if index % 3 == 0:
            sequences.replay(part * 40)
        elif index % 3 == 1:
            sequences.lose(part * 40)
        sequences.check()


def test_a_fleet_far_too_large_keeps_every_promise():
    outcome = HerdRun(replace(SETTING, failures_per_gpu_hour=0), day(), routers=50, experts=400, pace=None).run()
    assert outcome.kept == pytest.approx(1.0, abs=1e-6)
    assert outcome.gpu_hours == pytest.approx(450 * 0.5)


def test_a_fleet_far_too_small_keeps_none():
    assert HerdRun(SETTING, day(), routers=1, experts=8, pace=None).run().kept < 0.1


@pytest.mark.parametrize("pace", [None, marks(0.8)])
def test_every_request_ends(pace):
    run = HerdRun(replace(SETTING, failures_per_gpu_hour=0.2), day(), routers=12, experts=32, pace=pace)
    outcome = run.run()
    sequences = run.serving.sequences
    assert outcome.deaths > 0
    assert sequences.finished == pytest.approx(outcome.requests)
    assert outcome.lost == 0


def test_deaths_lose_requests_of_whole_models_and_replay_those_of_herd():
    setting = replace(SETTING, failures_per_gpu_hour=0.5)
    whole = WholeRun(setting, day(), replicas=4, pace=None).run()
    herd = HerdRun(setting, day(), routers=12, experts=32, pace=None).run()
    assert (whole.lost > 0, whole.replayed) == (True, 0)
    assert (herd.lost, herd.replayed > 0) == (0, True)


def test_the_same_seed_gives_the_same_result_and_another_one_another():
    setting = replace(SETTING, failures_per_gpu_hour=0.2)

    def outcome(seed):
        return HerdRun(replace(setting, seed=seed), day(seed=seed), routers=8, experts=24, pace=marks(0.8)).run()

    assert outcome(1).as_object() == outcome(1).as_object()
    assert outcome(1).as_object() != outcome(2).as_object()


def test_hours_pass_in_a_moment():
    began = time.process_time()
    HerdRun(SETTING, day(hours=2.0), routers=12, experts=32, pace=marks(0.8)).run()
    assert time.process_time() - began < 60


def test_a_scaled_herd_follows_its_load_within_the_budget():
    work = day(peak_per_s=40.0)
    free = HerdRun(SETTING, work, routers=2, experts=8, pace=marks(0.8)).run()
    bound = HerdRun(replace(SETTING, budget=15), work, routers=2, experts=8, pace=marks(0.8)).run()
    assert free.peak_gpus > 20
    assert bound.peak_gpus <= 15


def test_a_hot_expert_is_copied_by_herds_own_placement():
    pool = ExpertPool(MAVERICK, H100, start_s=1.0, load_bytes_per_s=2e9, place_every_s=10.0)
    for fleet in pool.fleets:
        fleet.running = 1
    pool.advance(0.0, 1.0)
    popularity = np.full(128, 0.4 / 127)
    popularity[5] = 0.6
    before = max(pool.loads(1.0, popularity)[0])
    for now in range(0, 120, 10):
        pool.place(1.0, popularity, float(now))
        pool.advance(float(now) + 5, 1.0)
    plain, special = pool.loads(1.0, popularity)
    assert pool.num_copies_added >= 3
    assert max([plain[0], *special.values()]) < before / 2


def test_an_expert_nobody_holds_stops_everything():
    pool = ExpertPool(MAVERICK, H100, start_s=1.0, load_bytes_per_s=2e9, place_every_s=10.0)
    assert math.isinf(max(pool.loads(1.0, np.full(128, 1 / 128))[0]))


def test_popularity_sums_to_one_and_drifts():
    rows = zipf(16, 1.0, periods=3, drift=0.5, seed=3)
    assert rows.sum(axis=1) == pytest.approx(np.ones(3))
    assert sorted(rows[0]) == pytest.approx(sorted(rows[2]))
    assert not np.array_equal(rows[0], rows[2])


def test_a_trace_becomes_steps_with_the_means_of_its_rows():
    rows = [
        TraceRow(at_s=0.0, input_tokens=100, output_tokens=10),
        TraceRow(at_s=4.0, input_tokens=300, output_tokens=30),
        TraceRow(at_s=11.0, input_tokens=50, output_tokens=5),
    ]
    work = recorded(rows, scale=10, step_s=5.0, popularity=zipf(16, 0, periods=1, drift=0, seed=0), period_s=1.0)
    assert work.requests.tolist() == [20, 0, 10]
    assert work.prompt_tokens.tolist() == [200, 0, 50]
    assert work.output_tokens.tolist() == [20, 0, 5]


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 20))
def test_the_smallest_number_is_found_from_any_guess(answer, guess, least):
    assert smallest(lambda count: count >= answer, guess, least) == max(answer, least)


def test_a_promise_nobody_can_keep_is_refused():
    with pytest.raises(InvalidRequest, match="found it missed"):
        smallest(lambda count: False, 1)


def test_a_comparison_of_an_hour_of_a_small_cluster(tmp_path):
    options = parse(["--hours", "1", "--peak", "10", "--bursts", "0"])
    setting, work = setting_of(options), workload_of(options)
    outcomes, notes = compare(setting, work)
    assert [each.name for each in outcomes] == ["herd, elastic", "herd, static", "whole models, elastic"]
    assert outcomes[1].meets(Slo())
    assert as_table(outcomes, notes, setting.slo).count("\n") == 4
    draw(outcomes, [(0.0, 1.0), (60.0, 2.0)], tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text().startswith("<?xml")


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    assert "whole models, elastic" in text
    assert "--trace" in text
