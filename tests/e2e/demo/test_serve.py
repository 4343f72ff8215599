"""The whole application over both APIs, with the clients its users have."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
from openai import BadRequestError, OpenAI

from benchmarks.chaos.application import HERD, Application
from benchmarks.chaos.processes import Part, processes_of
from protos.errors import ERROR_METADATA_KEY, from_rpc_error
from tests.chart.chart import notes
from tests.docs.pages import commands_of, printed, text_of
from tests.e2e.reflected_client import ReflectedClient, to_dict

pytestmark = pytest.mark.timeout(600)

SERVICE = "herd.inference.v1.InferenceService"
GENERATE = f"{SERVICE}/Generate"
LONG = {"stopping": {"max_tokens": 4000, "ignore_eos": True}, "token_ids": {"ids": [5, 6, 7]}}


@pytest.fixture
def openai_client(herd: Application):
    with OpenAI(base_url=f"{herd.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def grpc_client(herd: Application):
    with ReflectedClient(herd.grpc_address) as client:
        yield client


def test_reflection_tells_of_inference_and_health(grpc_client):
    assert grpc_client.services() == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        SERVICE,
    ]
    assert grpc_client.call("grpc.health.v1.Health/Check")["status"] == "SERVING"
    watch = grpc_client.stream("grpc.health.v1.Health/Watch")
    assert to_dict(next(watch))["status"] == "SERVING"
    watch.cancel()


def test_grpc_streams_started_deltas_and_finished(grpc_client):
    chat = {"messages": [{"role": "user", "content": "What does str.join do?"}]}
    events = [
        to_dict(each)
        for each in grpc_client.stream(GENERATE, chat=chat, stopping={"max_tokens": 24}, sampling={"temperature": 0})
    ]
    started, *deltas, finished = events
    num_prompt_tokens = started["started"]["prompt_tokens"]
    ids = [token for delta in deltas for token in delta["delta"]["token_ids"]]
    assert started["started"]["model"] == "demo"
    assert finished["finished"]["usage"] == {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": len(ids),
        "cached_tokens": 0,
    }
    assert 1 <= len(ids) <= 24
    assert any(delta["delta"]["text"] for delta in deltas)


def test_both_apis_continue_a_text_alike(grpc_client, openai_client):
    answer = openai_client.completions.create(model="demo", prompt="import os", max_tokens=12, temperature=0)
    deltas = grpc_client.stream(GENERATE, prompt="import os", stopping={"max_tokens": 12}, sampling={"temperature": 0})
    assert answer.choices[0].text == "".join(to_dict(each).get("delta", {}).get("text", "") for each in deltas)


def test_openai_client_streams_a_chat_with_usage(openai_client):
    chunks = list(
        openai_client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "What does os.path.join do?"}],
            max_tokens=16,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text
    assert chunks[-1].usage.completion_tokens <= 16
    assert [model.id for model in openai_client.models.list()] == ["demo"]


def test_server_info_places_every_expert_in_two_processes(grpc_client):
    info = grpc_client.call(f"{SERVICE}/GetServerInfo")
    replicas = info["expert_replicas"]
    assert sorted(expert for replica in replicas for expert in replica["expert_ids"]) == list(range(8))
    assert len({replica["pid"] for replica in replicas}) == 2
    assert {replica["group"] for replica in replicas} == {"Experts-0", "Experts-1"}


def test_a_traced_request_has_one_trace_through_front_door_router_and_experts(openai_client, collector):
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    asked = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01", "x-request-id": "slow-one"}
    openai_client.completions.create(model="demo", prompt=[5, 6, 7], max_tokens=4, extra_headers=asked)

    def is_complete(spans) -> bool:
        num_calls = sum(span.attributes["herd.step.calls"] for span in spans if span.name == "step")
        names = [span.name for span in spans]
        return "request" in names and "sequence" in names and names.count("experts") == num_calls > 0

    spans = collector.trace(trace_id, is_complete)
    by_id = {span.span_id: span for span in spans}
    paths = set()
    for span in spans:
        path = [f"{span.process}: {span.name}"]
        while (span := by_id.get(span.parent_id)) is not None:
            path.append(f"{span.process}: {span.name}")
        paths.add(" < ".join(path))
    assert paths == {
        "front door: request",
        "router: sequence < front door: request",
        "router: step < router: sequence < front door: request",
        "router: dispatch < router: step < router: sequence < front door: request",
        "experts: experts < router: dispatch < router: step < router: sequence < front door: request",
    }
    [request] = [span for span in spans if span.name == "request"]
    assert (request.parent_id, request.attributes["herd.request_id"]) == ("00f067aa0ba902b7", "slow-one")
    assert len({span.attributes["herd.replica"] for span in spans if span.name == "experts"}) == 2
    assert {span.trace_id for span in collector.spans} == {trace_id}, "nothing else was sampled"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"token_ids": {"ids": []}}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"prompt": "x", "model": "gpt-7"}, grpc.StatusCode.NOT_FOUND),
        ({"prompt": "x", "sampling": {"temperature": "NaN"}}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"prompt": "x", "stopping": {"max_tokens": 5000}}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_a_refused_stream_has_a_status_a_detail_and_no_message(grpc_client, fields, code):
    received = []
    with pytest.raises(grpc.RpcError) as caught:
        received.extend(grpc_client.stream(GENERATE, **fields))
    error = from_rpc_error(caught.value, "herd")
    assert not received
    assert caught.value.code() == code
    assert dict(caught.value.trailing_metadata())[ERROR_METADATA_KEY]
    assert "expected" in error.message


def test_a_refused_unary_call_has_a_status_and_a_detail(grpc_client):
    with pytest.raises(grpc.RpcError) as caught:
        grpc_client.call(f"{SERVICE}/Tokenize", prompt="x", model="gpt-7")
    assert from_rpc_error(caught.value, "herd").reason == "NOT_FOUND"


def test_openai_client_is_told_what_is_wrong(openai_client):
    with pytest.raises(BadRequestError) as caught:
        openai_client.completions.create(model="demo", prompt="x", max_tokens=0)
    assert "max_tokens" in caught.value.message


def test_oversized_requests_are_refused_and_harm_nobody(herd, grpc_client):
    body = b'{"model": "demo", "prompt": "' + b"x" * 100_000_000 + b'"}'
    request = urllib.request.Request(f"{herd.base_url}/v1/completions", body, {"content-type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    refused.value.close()
    with pytest.raises(grpc.RpcError) as caught:
        list(grpc_client.stream(GENERATE, prompt="x" * 100_000_000))
    assert refused.value.code == 413
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert grpc_client.call("grpc.health.v1.Health/Check")["status"] == "SERVING"


def test_a_cancelled_stream_frees_slot_and_cache(grpc_client):
    call = grpc_client.stream(GENERATE, **LONG)
    next(call)
    wait_for_load(grpc_client, running=1)
    call.cancel()
    assert seconds_until_free(grpc_client) < 1


def test_a_client_that_never_reads_frees_slot_and_cache_when_it_goes(herd, grpc_client):
    # No flow-control window to speak of: the server is soon stuck writing.
    small = (("grpc.http2.lookahead_bytes", 1), ("grpc.http2.bdp_probe", 0))
    with ReflectedClient(herd.grpc_address, *small) as reader:
        call = reader.stream(GENERATE, logprobs=20, **LONG)
        next(call)
        generated = wait_for_load(grpc_client, running=1)["generated_tokens"]
        while int(wait_for_load(grpc_client, running=1)["generated_tokens"]) < int(generated) + 150:
            time.sleep(0.05)
        call.cancel()
        assert seconds_until_free(grpc_client) < 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_closed_http_connection_frees_slot_and_cache(herd, grpc_client, stream):
    connection = http.client.HTTPConnection(f"localhost:{herd.http_port}")
    flag = "true" if stream else "false"
    body = f'{{"model": "demo", "prompt": [5, 6, 7], "max_tokens": 4000, "ignore_eos": true, "stream": {flag}}}'
    connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    wait_for_load(grpc_client, running=1)
    connection.close()
    assert seconds_until_free(grpc_client) < 1


def test_generate_command_streams_an_answer(herd):
    done = run_herd("generate", "What does str.join do?", "--max-tokens", "20", "--address", herd.grpc_address)
    assert done.returncode == 0
    assert done.stdout.strip()
    assert "tokens in all" in done.stderr


def test_the_readme_shows_what_generate_answers(herd):
    [shown] = [each for each in commands_of("README.md", text_of("README.md")) if "herd generate" in each.text]
    done = run_herd(*shlex.split(shown.text)[1:], "--address", herd.grpc_address)
    assert done.stdout.strip() == shown.shown.strip()


@pytest.mark.parametrize("page", ["README.md", "docs/openai.md", "helm/templates/NOTES.txt"])
def test_every_curl_of_the_documentation_is_answered(herd, page):
    text = text_of(page) if page.endswith(".md") else printed(notes())
    [command] = [each.text.replace("\\\n", " ") for each in commands_of(page, text) if each.text.startswith("curl ")]
    words = shlex.split(command.replace("localhost:8000", f"localhost:{herd.http_port}"))
    done = subprocess.run([*words, "--silent"], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["choices"][0]["finish_reason"] in ("stop", "length")


def test_generate_command_explains_a_refusal_in_one_line(herd):
    done = run_herd("generate", "x", "--temperature", "nan", "--address", herd.grpc_address)
    assert done.returncode == 2
    assert done.stderr.startswith("herd: ")
    assert len(done.stderr.splitlines()) == 1


def test_status_command_shows_routers_and_experts(herd):
    done = run_herd("status", "--address", herd.grpc_address)
    assert done.returncode == 0
    assert "Experts-1" in done.stdout
    assert "0-3" in done.stdout


def run_herd(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HERD, *args], capture_output=True, text=True, timeout=60, check=False)


def read_load(client: ReflectedClient) -> dict[str, object]:
    return client.call(f"{SERVICE}/GetLoad")["routers"][0]


def wait_for_load(client: ReflectedClient, *, running: int) -> dict[str, object]:
    give_up_at = time.monotonic() + 30
    while (load := read_load(client))["running"] != running:
        assert time.monotonic() < give_up_at, load
        time.sleep(0.02)
    return load


def seconds_until_free(client: ReflectedClient) -> float:
    began = time.monotonic()
    while True:
        load = read_load(client)
        if load["running"] == load["waiting"] == 0 and int(load["kv_used_bytes"]) == 0:
            return time.monotonic() - began
        assert time.monotonic() < began + 30, load
        time.sleep(0.02)


def test_only_processes_that_compute_have_loaded_torch(herd):
    loaded = {
        part.label: ["libtorch" in Path(f"/proc/{each.pid}/maps").read_text() for each in processes_of(herd.pid, part)]
        for part in (Part.FRONT_DOOR, Part.DIRECTORY, Part.CONTROLLER, Part.ROUTER, Part.EXPERT)
    }
    light = {"front door": [False], "directory": [False], "controller": [False]}
    assert loaded == light | {"router": [True], "expert": [True, True]}, "it takes seconds to load, and 100 MB"


def test_a_front_door_that_is_killed_ends_its_sequences_and_comes_back(herd, grpc_client):
    running = grpc_client.stream(GENERATE, **LONG)
    next(running)
    (front_door,) = processes_of(herd.pid, Part.FRONT_DOOR)
    os.kill(front_door.pid, signal.SIGKILL)
    with pytest.raises(grpc.RpcError) as caught:
        list(running)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    give_up_at = time.monotonic() + 120
    while True:
        try:
            # What ran would go on for ten seconds and more if nobody had ended it: nothing runs at the first look.
            assert read_load(grpc_client)["running"] == 0
            return
        except grpc.RpcError:
            assert time.monotonic() < give_up_at
            time.sleep(0.2)
