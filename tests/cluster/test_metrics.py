"""The table of metrics against what a front door serves and what the docs say."""

import re
import time
from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from cluster.class_queue import ClassQueue
from cluster.metrics import METRICS
from cluster.metrics_page import metrics_page
from cluster.router_client import PlacementInfo
from protos.errors import DeadlineExceeded
from router.request import GenerationRequest
from tests.cluster.busy_cluster import busy_placement, router_loads, with_experts
from tests.cluster.scripted_router import fails, says, then_holds
from tests.cluster.test_openai_operations import samples
from tests.conftest import ROOT

# Other people's dashboards and scalers read these: a change here is a decision.
PROMISED = """
herd_info herd_requests_total herd_refused_connections_total
herd_request_seconds herd_request_prompt_tokens herd_request_generation_tokens
herd_sequences_total herd_prompt_tokens_total herd_generation_tokens_total herd_time_to_first_token_seconds
herd_inter_token_seconds herd_replayed_sequences_total herd_sequences_in_flight herd_sequences_in_line
herd_admitted_prompt_tokens herd_front_door_draining

herd_running_sequences herd_waiting_sequences herd_slots herd_queued_prompt_tokens herd_generated_tokens
herd_kv_used_bytes herd_kv_total_bytes herd_kv_pages herd_kv_cached_bytes herd_kv_host_bytes herd_kv_disk_bytes
herd_kv_restored_host_bytes herd_kv_restored_disk_bytes herd_kv_restore_host_seconds herd_kv_restore_disk_seconds
herd_kv_damaged_pages herd_prefix_queried_tokens herd_prefix_cached_tokens herd_prefix_hit_ratio
herd_context_repaired_tokens herd_context_free_tokens herd_context_wanted_tokens herd_preemptions

herd_dispatch_shares herd_dispatch_hedges herd_dispatch_resends herd_dispatch_probes herd_dispatch_answers
herd_dispatch_seconds herd_ejections herd_ejected_replicas

herd_expert_tokens_per_second herd_expert_copies herd_expert_machines herd_expert_queue_seconds
herd_expert_compute_seconds herd_expert_spare_bytes herd_replicas herd_departures herd_draining_nodes herd_drained_nodes

vllm:num_requests_running vllm:num_requests_waiting vllm:kv_cache_usage_perc vllm:time_to_first_token_seconds
vllm:inter_token_latency_seconds vllm:e2e_request_latency_seconds vllm:request_prompt_tokens
vllm:request_generation_tokens vllm:prompt_tokens_total vllm:generation_tokens_total vllm:request_success_total
"""


def scrape_of_a_busy_cluster(door, router) -> str:
    router.loads, router.placement = router_loads(ejected=("experts-1-0",)), busy_placement(16, 4)
    door.service.model = with_experts(door.service.model, 16)
    door.post("/v1/completions", {"prompt": [[5, 6], [7]], "n": 2})
    return door.get("/metrics")[2]


def test_metrics_are_named_as_promised():
    assert [metric.name for metric in METRICS] == PROMISED.split()


def test_a_front_door_exports_the_table_and_nothing_else(door, router):
    exported = re.findall(r"^# TYPE (\S+) (\w+)$", scrape_of_a_busy_cluster(door, router), re.MULTILINE)
    assert sorted(exported) == sorted((metric.name, metric.kind) for metric in METRICS)


def test_every_metric_has_samples_with_the_labels_of_the_table(door, router):
    families = {each.name: each for each in text_string_to_metric_families(scrape_of_a_busy_cluster(door, router))}
    for metric in METRICS:
        found = families[metric.name.removesuffix("_total")].samples
        assert {tuple(sorted(set(each.labels) - {"le"})) for each in found} == {tuple(sorted(metric.labels))}


def test_the_docs_list_every_metric():
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics_page()


def test_names_end_in_their_unit_and_only_counters_in_total():
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert not metric.name.endswith("_seconds") or metric.unit == "seconds"
        assert not metric.name.endswith("_bytes") or metric.unit == "bytes"
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert metric.kind == "gauge" or not metric.grows


def test_what_is_retold_has_the_kind_and_the_buckets_of_its_source():
    known = {metric.name: metric for metric in METRICS}
    for metric in METRICS:
        if metric.retells:
            source = known[metric.retells]
            assert (metric.kind, metric.unit, metric.buckets) == (source.kind, source.unit, source.buckets)


def test_names_made_for_vllm_tell_what_herds_own_tell(door):
    door.post("/v1/completions", {"prompt": [[5, 6], [7]], "n": 2})
    found = samples(door)
    assert found["vllm:prompt_tokens_total", "tiny"] == found["herd_prompt_tokens_total", ""] == 3
    assert found["vllm:generation_tokens_total", "tiny"] == 20
    assert found["vllm:request_success_total", "length, tiny"] == found["herd_sequences_total", "length"] == 4
    assert found["vllm:request_success_total", "stop, tiny"] == 0
    assert found["vllm:time_to_first_token_seconds_count", "tiny"] == 1
    assert found["vllm:inter_token_latency_seconds_count", "tiny"] == 16
    assert found["vllm:inter_token_latency_seconds_sum", "tiny"] == found["herd_inter_token_seconds_sum", ""]
    assert found["vllm:e2e_request_latency_seconds_bucket", "+Inf, tiny"] == 1


def test_a_request_is_measured_when_it_ends(door):
    door.post("/v1/completions", {"prompt": [[5, 6], [7]], "n": 2})
    found = samples(door)
    assert found["herd_request_seconds_count", "standard"] == 1
    assert found["herd_request_prompt_tokens_sum", "standard"] == 3
    assert found["herd_request_generation_tokens_sum", "standard"] == 20
    assert found["herd_admitted_prompt_tokens", "standard"] == found["herd_sequences_in_flight", ""] == 0


def test_sequences_that_fail_or_lose_their_client_are_told_apart(door, router, client):
    router.script = fails(DeadlineExceeded("late"), 72)
    door.post("/v1/completions", {"prompt": [5]})
    router.script = then_holds(72)
    with client.completions.create(model="tiny", prompt=[5], stream=True) as stream:
        next(iter(stream))
    assert wait_until(lambda: samples(door)["herd_sequences_total", "abort"] == 1)
    router.script = says(72, reason="stop")
    door.post("/v1/completions", {"prompt": [5]})
    found = samples(door)
    ends = {reason: found["herd_sequences_total", reason] for reason in ("stop", "length", "abort", "error")}
    assert ends == {"stop": 1, "length": 0, "abort": 1, "error": 1}


def test_answers_to_dispatches_are_told_by_part(door, router):
    router.loads = router_loads(ejected=())
    found = samples(door)
    assert found["herd_dispatch_answers", "router-a"] == 1_204_300
    parts = {part: found["herd_dispatch_seconds", f"{part}, router-a"] for part in ("queue", "compute", "network")}
    assert parts == {"queue": 370.0, "compute": 4100.0, "network": 930.0}


def test_replicas_are_counted_by_deployment_and_state(door, router):
    router.placement = busy_placement(16, 4)
    found = samples(door)
    assert found["herd_replicas", "experts-0-3, ready"] == 2
    assert found["herd_replicas", "experts-0-3, draining"] == 0
    assert found["herd_replicas", "Experts-5, starting"] == 1


def test_replicas_of_a_dense_model_are_counted_too(door, router):
    door.service.model = with_experts(door.service.model, 0)
    routers = tuple(each for each in busy_placement(16, 4).roster if each.deployment == "Router")
    router.placement = PlacementInfo(version=17, roster=routers)
    assert samples(door)["herd_replicas", "Router, ready"] == 2


def test_pages_are_told_by_layers_and_state(door, router):
    router.loads = router_loads(ejected=())
    found = samples(door)
    told = {
        (layers, state): found["herd_kv_pages", f"{layers}, router-a, {state}"]
        for layers in ("global", "local")
        for state in ("used", "kept", "free")
    }
    assert told == {
        ("global", "used"): 550,
        ("global", "kept"): 30,
        ("global", "free"): 420,
        ("local", "used"): 110,
        ("local", "kept"): 0,
        ("local", "free"): 90,
    }


def test_an_expert_that_nobody_holds_is_told_as_0_and_not_left_out(door, router):
    door.service.model = with_experts(door.service.model, 16)
    placement = busy_placement(16, 4)
    router.placement = replace(placement, expert_replicas=placement.expert_replicas[2:])
    found = samples(door)
    assert [found["herd_expert_copies", str(expert)] for expert in (0, 1, 3, 4)] == [3, 0, 0, 2]


def test_experts_in_the_routers_process_have_no_copies_to_tell_of(door, router):
    router.placement = PlacementInfo(version=17, roster=busy_placement(16, 4).roster[-3:])
    assert not [labels for name, labels in samples(door) if name == "herd_expert_copies"]


def test_who_went_and_what_drains_is_told(door, router):
    router.placement = busy_placement(16, 4)
    found = samples(door)
    assert (found["herd_departures", "left"], found["herd_departures", "lost"]) == (3, 1)
    assert (found["herd_draining_nodes", ""], found["herd_drained_nodes", ""]) == (1, 2)


def test_failures_are_told_from_the_start_so_that_the_first_one_is_a_rise(door):
    found = samples(door)
    failures = {code: value for (name, code), value in found.items() if name == "herd_requests_total"}
    assert failures == dict.fromkeys(
        [f"{api}, {code}" for api in ("chat", "completions") for code in (500, 503, 504)]
        + [f"grpc, {code}" for code in ("INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED")],
        0,
    )


def test_a_front_door_that_drains_says_so(door):
    assert samples(door)["herd_front_door_draining", ""] == 0
    door.service.drain()
    assert samples(door)["herd_front_door_draining", ""] == 1


def wait_until(claim, timeout_s: float = 20.0) -> bool:
    give_up_at = time.monotonic() + timeout_s
    while not claim():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.005)
    return True


async def never(request):
    raise AssertionError("nobody is asked")
    yield


def test_those_in_line_are_counted():
    line = ClassQueue(never)
    turn = line.join(GenerationRequest(request_id="a", prompt_ids=(1,), max_tokens=1))
    assert line.num_waiting == 1
    turn.leave()
    assert line.num_waiting == 0
