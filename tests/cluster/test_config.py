import dataclasses
import json
from pathlib import Path

import pytest

from cluster.config import ClusterConfig
from cluster.config_source import knobs, load_config
from protos.errors import BadConfig
from tests.conftest import ROOT

# Every setting there is: adding one is a decision, made here.
KNOBS = [
    "model.path",
    "model.name",
    "model.context_length",
    "model.quantize",
    "http.host",
    "http.port",
    "grpc.port",
    "grpc.max_message_bytes",
    "router.replicas",
    "router.device",
    "router.dtype",
    "router.threads",
    "router.slots",
    "router.max_waiting",
    "router.step_tokens",
    "router.prefill_stretch",
    "router.kv_bytes",
    "router.kv_dtype",
    "router.page_tokens",
    "router.prefix_cache",
    "router.host_kv_bytes",
    "router.disk_kv_bytes",
    "router.kv_folder",
    "router.answer_timeout_s",
    "router.patience_s",
    "router.stuck_after_s",
    "experts.groups",
    "experts.in_router",
    "experts.device",
    "experts.replicas_per_group",
    "experts.spare_experts",
    "experts.threads",
    "experts.copy_from_peers",
    "experts.warm_spares",
    "experts.host",
    "experts.lease_s",
    "experts.drain_s",
    "experts.tls_ca",
    "experts.tls_cert",
    "experts.tls_key",
    "context.shards",
    "context.max_shards",
    "context.kv_bytes",
    "context.segment_tokens",
    "context.threads",
    "context.host",
    "context.lease_s",
    "long.from_tokens",
    "long.context_length",
    "long.replicas",
    "long.min_replicas",
    "long.max_replicas",
    "long.slots",
    "long.kv_bytes",
    "long.step_tokens",
    "long.threads",
    "long.priority",
    "long.max_sequences",
    "long.max_queued_prompt_tokens",
    "long.request_timeout_s",
    "scaling.front_door_min_replicas",
    "scaling.front_door_max_replicas",
    "scaling.router_min_replicas",
    "scaling.router_max_replicas",
    "scaling.experts_min_replicas",
    "scaling.experts_max_replicas",
    "scaling.budget",
    "scaling.router_use",
    "scaling.experts_use",
    "scaling.ttft_s",
    "scaling.down_after_s",
    "scaling.zero_after_s",
    "limits.max_body_bytes",
    "limits.max_sequences",
    "limits.max_connections",
    "limits.max_queued_prompt_tokens",
    "limits.request_timeout_s",
    "limits.body_timeout_s",
    "limits.drain_s",
    "limits.lame_duck_s",
    "limits.health_timeout_s",
    "log.format",
    "log.level",
    "trace.endpoint",
    "trace.sample",
    "kubernetes.watch",
    "kubernetes.near_labels",
    "auth.keys_file",
    "tls.cert",
    "tls.key",
    "tls.client_ca",
]

# assignment -> what the refusal says
WRONG = {
    "router.slot=8": "did you mean slots?",
    "rooter.slots=8": "did you mean router?",
    "router.slots": "expected section.key=value",
    "slots=8": "expected section.key=value",
    "router.slots=many": "expected a whole number, found 'many'",
    "router.slots=1.5": "expected a whole number, found 1.5",
    "router.slots=yes": "expected a whole number, found true",
    "router.prefix_cache=7": "expected true or false, found 7",
    "router.slots=null": "expected a whole number, found null",
    "router.slots=0": "expected at least 1, found 0",
    "router.kv_bytes=-1": "expected at least 1, found -1",
    "router.dtype=int8": "expected 'auto' or 'float32' or 'bfloat16' or 'float16', found 'int8'",
    "model.quantize=int3": "expected 'int8' or 'int4' or 'fp8' or null, found 'int3'",
    "router.patience_s=.nan": "expected a positive number of seconds, found nan",
    "router.step_tokens=8": "expected at least router.slots, 16, found 8",
    "http.port=65536": "expected a port from 1 to 65535, found 65536",
    "http.port=9000": "found 9000 for both HTTP and gRPC",
    "model.path=": "model.path: expected text, found null",
    "experts.lease_s=1": "expected at least 2, found 1",
    "context.max_shards=0": "context.max_shards: expected at least context.shards, 0, and 1, found 0",
    "context.max_shards=2": "context.shards: expected at least 1 where there may be 2, found 0",
    "long.from_tokens=1": "long.from_tokens: expected at least 2, found 1",
    "long.priority=high": "long.priority: expected 'idle' or 'normal', found 'high'",
    "long.step_tokens=1": "long.step_tokens: expected at least long.slots, 2, found 1",
    "long.min_replicas=2": "long.min_replicas, long.max_replicas: expected bounds around the 1 there are at first",
    "long.request_timeout_s=0": "long.request_timeout_s: expected a positive number of seconds, found 0",
    "scaling.router_min_replicas=-1": "scaling.router_min_replicas: expected at least 0, found -1",
    "scaling.front_door_min_replicas=0": "scaling.front_door_min_replicas: expected at least 1, found 0",
    "scaling.zero_after_s=0": "scaling.zero_after_s: expected a positive number of seconds, found 0",
    "scaling.experts_max_replicas=0": "scaling.experts_max_replicas: expected at least 1, found 0",
    "scaling.experts_min_replicas=2": "expected bounds around the 1 there are at first, found 2 and 1",
    "scaling.router_use=0.9": "scaling.router_use: expected above 0 and at most 0.85, found 0.9",
    "scaling.ttft_s=0": "scaling.ttft_s: expected a positive number of seconds, found 0",
    "limits.max_sequences=0": "limits.max_sequences: expected at least 1, found 0",
    "log.format=xml": "log.format: expected 'text' or 'json', found 'xml'",
    "log.level=INFO": "log.level: expected 'debug' or 'info' or 'warning' or 'error', found 'INFO'",
    "trace.endpoint=collector:4318": "trace.endpoint: expected a URL that begins with http, found 'collector:4318'",
    "trace.sample=2": "trace.sample: expected 0 to 1, found 2",
    "experts.tls_ca=a.pem": "experts.tls_ca, experts.tls_cert, experts.tls_key: expected all or none",
    "tls.cert=a.pem": "tls.cert, tls.key: expected both or neither",
    "tls.client_ca=a.pem": "tls.cert, tls.key: expected both or neither",
    "router.slots={": "expected a value in YAML",
}


def test_every_setting_is_listed():
    assert knobs() == KNOBS


def test_every_setting_is_documented_with_its_default():
    text = (ROOT / "docs" / "settings.md").read_text()
    config = ClusterConfig()
    for knob in KNOBS:
        section, key = knob.split(".")
        default = getattr(getattr(config, section), key)
        assert f"| `{knob}` | `{'null' if default is None else default}` |" in text


def test_defaults_are_valid():
    assert load_config() == ClusterConfig()


@pytest.mark.parametrize("assignment", WRONG)
def test_a_wrong_setting_is_refused_with_what_was_expected(assignment):
    with pytest.raises(BadConfig) as caught:
        load_config(assignments=[assignment])
    assert WRONG[assignment] in caught.value.message


@pytest.mark.parametrize("text", ["true", "false"])
def test_what_is_on_or_off_takes_true_and_false(text):
    assert load_config(assignments=[f"router.prefix_cache={text}"]).router.prefix_cache == (text == "true")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("experts.groups=2", "experts.groups: expected at most 1 with experts.in_router"),
        ("experts.replicas_per_group=2", "experts.replicas_per_group: expected at most 1"),
        ("experts.spare_experts=1", "experts.spare_experts: expected at most 0"),
        ("experts.copy_from_peers=always", "expected auto or never with experts.in_router"),
        ("experts.device=cuda", "experts.device: expected router.device, auto"),
        ("scaling.experts_max_replicas=2", "expected none with experts.in_router"),
        ("scaling.experts_min_replicas=0", "expected none with experts.in_router"),
    ],
)
def test_what_only_expert_replicas_could_have_is_refused_with_experts_in_the_router(assignment, message):
    load_config(assignments=[assignment.replace("=cuda", "=cpu")])
    with pytest.raises(BadConfig, match=message):
        load_config(assignments=["experts.in_router=true", assignment])


def test_assignments_win_over_the_file(tmp_path: Path):
    file = tmp_path / "herd.yaml"
    file.write_text("router:\n  slots: 4\n  dtype: bfloat16\nexperts:\n  groups: 8\n")
    config = load_config(file, ["router.slots=2", "experts.groups=null"])
    assert (config.router.slots, config.router.dtype, config.experts.groups) == (2, "bfloat16", None)


def test_json_is_read_too(tmp_path: Path):
    file = tmp_path / "herd.json"
    file.write_text(json.dumps({"limits": {"request_timeout_s": 5}}))
    assert load_config(file).limits.request_timeout_s == 5


@pytest.mark.parametrize("text", ["router: [", "- a", "router: 3", "router:\n  slots: x", "3: {a: 1}"])
def test_a_broken_file_is_refused_with_its_name(tmp_path: Path, text):
    file = tmp_path / "herd.yaml"
    file.write_text(text)
    with pytest.raises(BadConfig) as caught:
        load_config(file)
    assert str(file) in caught.value.message


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(BadConfig, match="readable file"):
        load_config(tmp_path / "none.yaml")


def test_sections_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ClusterConfig().router.slots = 3  # type: ignore[misc]
