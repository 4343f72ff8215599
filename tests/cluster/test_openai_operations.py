import json
import re

from prometheus_client.parser import text_string_to_metric_families

from cluster.metrics import METRICS

# Other people's dashboards and scalers read these: a change here is a decision.
METRIC_NAMES = [
    "herd_requests_total",
    "herd_prompt_tokens_total",
    "herd_generation_tokens_total",
    "herd_time_to_first_token_seconds",
    "herd_inter_token_seconds",
    "herd_replayed_sequences_total",
    "herd_sequences_in_flight",
    "herd_running_sequences",
    "herd_waiting_sequences",
    "herd_queued_prompt_tokens",
    "herd_kv_used_bytes",
    "herd_kv_total_bytes",
    "herd_kv_cached_bytes",
    "herd_kv_swapped_bytes",
    "herd_prefix_queried_tokens",
    "herd_prefix_cached_tokens",
    "herd_prefix_hit_ratio",
    "herd_preemptions",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
]


def samples(door) -> dict[tuple[str, str], float]:
    """Return every sample by its name and its one label's value, if it has one."""
    _, _, text = door.get("/metrics")
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_served_model_is_listed_and_described(client):
    [listed] = client.models.list().data
    assert (listed.id, listed.object, listed.owned_by) == ("tiny", "model", "herd")
    assert listed.max_model_len == 128
    assert client.models.retrieve("tiny").id == "tiny"


def test_an_unknown_model_is_a_404_even_with_slashes(door):
    status, _, text = door.get("/v1/models/meta/llama")
    assert status == 404
    assert "'meta/llama'" in json.loads(text)["error"]["message"]


def test_health_is_good_only_while_a_router_answers(door, router):
    assert door.get("/health")[0] == 200
    router.replicas = 0
    status, _, text = door.get("/health")
    assert (status, json.loads(text)["error"]["code"]) == (503, "no_replica")


def test_metrics_are_named_as_promised():
    assert [metric.name for metric in METRICS] == METRIC_NAMES


def test_metrics_count_what_was_generated(door, text_model):
    door.post("/v1/completions", {"prompt": [[5, 6], [7]], "n": 2})
    found = samples(door)
    assert found["herd_prompt_tokens_total", ""] == 3
    assert found["herd_generation_tokens_total", ""] == 20
    assert found["herd_time_to_first_token_seconds_count", ""] == 1
    assert found["herd_inter_token_seconds_count", ""] == 16
    assert found["herd_kv_used_bytes", "router-0"] == 25
    assert found["vllm:kv_cache_usage_perc", "tiny"] == 0.25


def test_metrics_forget_replicas_that_are_gone(door, router):
    router.replicas = 2
    assert ("herd_running_sequences", "router-1") in samples(door)
    router.replicas = 0
    assert not any(name == "herd_running_sequences" for name, _ in samples(door))


def test_status_tells_the_model_its_routers_and_experts(door):
    status = json.loads(door.get("/status.json")[2])
    assert status["model"]["name"] == "tiny"
    assert status["routers"][0] | {"replica_id": "router-0", "kv_total_bytes": 100} == status["routers"][0]
    assert status["expert_replicas"][0]["expert_ids"] == [0, 1]
    assert (status["placement_version"], status["error"]) == (3, None)


def test_status_says_why_nothing_can_be_shown(door, router):
    router.replicas = 0
    status = json.loads(door.get("/status.json")[2])
    assert status["routers"] == []
    assert "at least one router" in status["error"]


def test_the_page_needs_nothing_from_elsewhere(door):
    status, headers, page = door.get("/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "status.json" in page
    assert not re.search(r"https?://|//cdn|@import|\bsrc=", page)


def test_the_page_reads_fields_that_exist(door):
    read = set(re.findall(r"\b(?:state|model|each)\.(\w+)", door.get("/")[2]))
    status = json.loads(door.get("/status.json")[2])
    exist = status.keys() | status["model"].keys() | status["routers"][0].keys() | status["expert_replicas"][0].keys()
    assert len(read) > 15
    assert read <= exist


def test_the_schema_describes_the_bodies(door):
    schema = json.loads(door.get("/openapi.json")[2])
    body = schema["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"prompt", "max_tokens", "logprobs", "seed", "stop"} <= body["properties"].keys()
