"""Medians, best variants and paired ratios."""

from __future__ import annotations

import json

import pytest

from benchmarks.peers.engines import all_variants
from benchmarks.peers.report import GOALS, Run, as_json, as_markdown, fit_prefill, spread
from benchmarks.peers.workloads import LONG_WORKLOADS, WORKLOADS, Measure


def sample(rate: float) -> Measure:
    return Measure(rate=rate, total_rate=rate / 2, first_token_s=0.1, last_first_token_s=0.2, seconds=1.0)


def run_of(**rates: list[float]) -> Run:
    run = Run(variants=all_variants(), workloads=WORKLOADS)
    for name, found in rates.items():
        for number, rate in enumerate(found, 1):
            run.add(name.replace("__", "-"), "decode-8", number, sample(rate))
    return run


def test_spread_is_the_median_with_the_least_and_the_most():
    assert spread([3.0, 1.0, 2.0]) == "2.0 (1.0 to 3.0)"
    assert spread([]) == "-"


def test_the_best_variant_is_chosen_by_its_median():
    run = run_of(vllm__all__fp32=[10, 40, 20], vllm__all__bf16=[21, 22, 23])
    assert run.best("vllm", "decode-8") == "vllm-all-bf16"
    assert run.best("vllm", "decode-1") is None


def test_quantised_variants_are_kept_apart():
    run = run_of(llama__bf16=[10], llama__q8_0=[30])
    assert run.best("llama", "decode-8") == "llama-bf16"
    assert run.best("llama", "decode-8", is_quantized=True) == "llama-q8_0"


def test_ratios_are_taken_round_by_round_where_both_were_measured():
    run = run_of(herd__split__fp32=[20, 60, 90], vllm__all__fp32=[10, 20])
    assert run.ratios("herd-split-fp32", "vllm-all-fp32", "decode-8") == [2.0, 3.0]


def test_the_page_says_which_goals_were_met_missed_and_not_measured():
    page = as_markdown(run_of(herd__split__fp32=[20, 60], vllm__all__fp32=[20, 30]), "# Title", {"date": "today"})
    assert "| decode-8 | herd-split-fp32 | vllm-all-fp32 | 1.5 | 1.50 (1.00 to 2.00) | met |" in page
    asked = {workload.name for workload in WORKLOADS}
    assert page.count("not measured") == sum(goal.workload in asked for goal in GOALS) - 1


def test_goals_name_families_and_workloads_that_exist():
    families = {variant.family for variant in all_variants().values()}
    assert {goal.ours for goal in GOALS} | {goal.theirs for goal in GOALS} <= families
    assert {goal.workload for goal in GOALS} <= {workload.name for workload in (*WORKLOADS, *LONG_WORKLOADS)}


def test_everything_can_be_written_as_json():
    run = run_of(vllm__all__fp32=[1.5])
    run.note_peak("vllm-all-fp32", {"vllm": 5})
    run.note_peak("vllm-all-fp32", {"vllm": 3})
    found = json.loads(json.dumps(as_json(run, {})))["engines"]["vllm-all-fp32"]
    assert found["rounds"]["decode-8"]["1"]["rate"] == 1.5
    assert found["peak_rss_bytes"] == {"vllm": 5}


def test_the_fit_of_long_prompts_finds_both_terms_and_what_they_leave():
    points = [(n, 2e-4 * n + 3e-9 * n * n) for n in (8192, 32_768, 65_536)]
    assert fit_prefill(points) == pytest.approx((2e-4, 3e-9, 0), abs=1e-9)
    *_, residual = fit_prefill([*points, (16_384, 10.0)])
    assert residual > 0.1
