import json
import re

from prometheus_client.parser import text_string_to_metric_families

from protos.errors import NoReplica
from tests.cluster.busy_cluster import busy_placement, router_loads, with_experts


def samples(door) -> dict[tuple[str, str], float]:
    """Return every sample by its name and its labels' values."""
    _, _, text = door.get("/metrics")
    return {
        (sample.name, ", ".join(sample.labels.values())): sample.value
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


def test_health_is_good_where_the_first_request_starts_a_router(door, router):
    router.loads = ()
    status, _, text = door.get("/health")
    assert (status, json.loads(text)) == (200, {"status": "ok", "routers": 0})
    status = json.loads(door.get("/status.json")[2])
    assert (status["routers"], status["routers_error"]) == ([], None)


def test_metrics_count_what_was_generated(door, text_model):
    door.post("/v1/completions", {"prompt": [[5, 6], [7]], "n": 2})
    found = samples(door)
    assert found["herd_prompt_tokens_total", ""] == 3
    assert found["herd_generation_tokens_total", ""] == 20
    assert found["herd_time_to_first_token_seconds_count", "standard"] == 1
    assert found["herd_inter_token_seconds_count", ""] == 16
    assert found["herd_kv_used_bytes", "router-0"] == 25
    assert found["vllm:kv_cache_usage_perc", "tiny"] == 0.25


def test_metrics_forget_replicas_that_are_gone(door, router):
    router.replicas = 2
    assert ("herd_running_sequences", "router-1") in samples(door)
    router.replicas = 0
    assert not any(name == "herd_running_sequences" for name, _ in samples(door))


def test_metrics_tell_dispatches_by_router(door, router):
    router.loads = router_loads(ejected=("experts-1-0",))
    found = samples(door)
    assert found["herd_dispatch_shares", "router-a"] == 1_204_331
    assert (found["herd_dispatch_hedges", "router-b"], found["herd_dispatch_resends", "router-b"]) == (412, 7)
    assert (found["herd_ejections", "router-a"], found["herd_dispatch_probes", "router-a"]) == (4, 12)
    assert (found["herd_ejected_replicas", "router-a"], found["herd_ejected_replicas", "router-b"]) == (1, 0)


def test_routers_with_their_experts_inside_have_no_dispatches(door):
    assert not any(name.startswith("herd_dispatch") for name, _ in samples(door))


def test_metrics_tell_expert_replicas_with_one_series_per_copy(door, router):
    router.placement = busy_placement(16, 4)
    door.service.model = with_experts(door.service.model, 16)
    found = samples(door)
    assert found["herd_expert_tokens_per_second", "0, experts-1-0"] == 640
    assert found["herd_expert_tokens_per_second", "4, experts-1-0"] == 0
    assert (found["herd_expert_copies", "0"], found["herd_expert_copies", "15"]) == (5, 2)
    assert (found["herd_expert_queue_seconds", "experts-0-1"], found["herd_expert_spare_bytes", "experts-0-1"]) == (
        0.00062,
        1_000_000_000,
    )
    assert found["herd_expert_compute_seconds", "experts-0-1"] == 0.0042
    assert sum(name == "herd_expert_tokens_per_second" for name, _ in found) == 2 * 16 + 3


def test_a_scrape_takes_the_placement_that_the_status_page_has_just_shown(door, router):
    door.get("/status.json")
    samples(door)
    samples(door)
    assert router.descriptions == 1


def test_metrics_are_there_while_the_placement_is_not_known(door, router):
    router.placement = NoReplica("no directory")
    found = samples(door)
    assert found["herd_running_sequences", "router-0"] == 0
    assert not any(name.startswith("herd_expert") for name, _ in found)


def test_status_tells_the_model_its_routers_experts_and_events(door, router):
    router.loads, router.placement = router_loads(ejected=("experts-1-0",)), busy_placement(16, 4)
    door.service.model = with_experts(door.service.model, 16)
    status = json.loads(door.get("/status.json")[2])
    assert status["model"]["name"] == "tiny"
    dispatches = status["routers"][0]["dispatches"]
    assert (status["routers"][0]["pid"], dispatches["hedges"], dispatches["ejected"]) == (20_000, 412, ["experts-1-0"])
    assert dispatches["lanes"] == {"experts-0-0": {"lane": "shm", "reason": "the card has no room"}}
    replica = status["expert_replicas"][2]
    assert (replica["expert_ids"], replica["home_ids"]) == ([0, 4, 5, 6, 7], [4, 5, 6, 7])
    assert (replica["host"], replica["tokens_per_s"]["0"], replica["compute_s"]) == ("node-1", 640, 0.0042)
    assert status["events"][-2]["text"] == "lost: no heartbeat came any more"
    loading, layer = status["replicas"][2], status["layer_load"][3]
    assert (loading["deployment"], loading["state"], loading["total_bytes"]) == ("Experts-5", "starting", 6_000_000_000)
    assert (layer["layer"], len(layer["tokens_per_s"]), layer["tokens_per_s"][0]) == (7, 16, 320)
    assert status["replicas_error"] is None
    assert (status["placement_version"], status["routers_error"], status["experts_error"]) == (17, None, None)


def test_status_says_why_a_part_cannot_be_shown_and_shows_the_other(door, router):
    router.replicas = 0
    status = json.loads(door.get("/status.json")[2])
    assert (status["routers"], status["experts_error"]) == ([], None)
    assert "at least one router" in status["routers_error"]
    assert status["expert_replicas"]


def test_the_page_needs_nothing_from_elsewhere_and_runs_only_its_own_files(door):
    status, headers, _ = door.get("/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "script-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    for name in page_files(door):
        status, headers, text = door.get(f"/status/{name}")
        assert (status, headers["x-content-type-options"]) == (200, "nosniff")
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|//cdn|@import|innerHTML|insertAdjacentHTML", text)


def test_other_files_are_not_served_as_the_page(door):
    for name in ("status.py", "..%2f..%2fpyproject.toml", "nothing.js"):
        assert door.get(f"/status/{name}")[0] == 404


def test_the_page_reads_fields_that_exist(door, router):
    router.loads, router.placement = router_loads(ejected=()), busy_placement(16, 4)
    door.service.model = with_experts(door.service.model, 16)
    status = json.loads(door.get("/status.json")[2])
    exist = {
        "state": status.keys(),
        "model": status["model"].keys(),
        "router": status["routers"][0].keys(),
        "replica": status["expert_replicas"][0].keys(),
        "member": status["replicas"][0].keys(),
        "event": status["events"][0].keys() | {"target"},  # the browser's own
    }
    source = "".join(door.get(f"/status/{name}")[2] for name in page_files(door) if name.endswith(".js"))
    read = set(re.findall(r"\b(state|model|router|replica|member|event)\.(\w+)", source))
    assert len(read) > 30
    assert {(name, field) for name, field in read if field not in exist[name]} == set()


def page_files(door) -> set[str]:
    """Return the files that make up the page, as it and they name them."""
    found, ask = set(), re.findall(r"status/([\w.]+)", door.get("/")[2])
    while ask:
        name = ask.pop()
        if name not in found and "." in name:
            found.add(name)
            ask += re.findall(r'from "\./([\w.]+)"', door.get(f"/status/{name}")[2])
    return found


def test_the_schema_describes_the_bodies(door):
    schema = json.loads(door.get("/openapi.json")[2])
    body = schema["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"prompt", "max_tokens", "logprobs", "seed", "stop"} <= body["properties"].keys()
