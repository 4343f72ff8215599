"""API keys and quotas as clients meet them: over both APIs, through real sockets."""

from __future__ import annotations

import base64
import json
import socket
from contextlib import ExitStack

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cluster.auth.guard import Guard
from cluster.auth.key_file import KeyEntry, add_key, key_hash
from cluster.cli.generate import Options, stream_answer
from cluster.cli.server_address import API_KEY
from cluster.limits import FrontDoorLimits
from cluster.service import InferenceService
from protos import errors
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1.inference_pb2_grpc import InferenceServiceStub
from tests.cluster.live_front_door import LiveFrontDoor, refusal
from tests.cluster.scripted_router import babbles, says
from tests.experts.replica_client import wait_until

WAIT_S = 30
BODY = {"prompt": "Hello", "max_tokens": 2}
REQUEST = pb.GenerateRequest(prompt="Hello", stopping=pb.Stopping(max_tokens=2))
ADMIN_PATHS = ["/", "/metrics", "/status.json", "/status/main.js", "/docs"]


@pytest.fixture
def guarded(router, text_model, tmp_path):
    file = tmp_path / "keys.yaml"
    add_key(file, KeyEntry(name="alice", sha256=key_hash("a")))
    add_key(file, KeyEntry(name="once", sha256=key_hash("o"), requests_per_minute=1))
    add_key(file, KeyEntry(name="few", sha256=key_hash("f"), tokens_per_minute=2))
    add_key(file, KeyEntry(name="two", sha256=key_hash("t"), streams=2))
    add_key(file, KeyEntry(name="held", sha256=key_hash("h"), even_share=True))
    add_key(file, KeyEntry(name="root", sha256=key_hash("r"), admin=True))
    service = InferenceService(text_model, router, FrontDoorLimits(max_body_bytes=100_000, health_timeout_s=20))
    with LiveFrontDoor(service, Guard(file)) as live:
        yield live


@pytest.fixture
def channel(guarded):
    with grpc.insecure_channel(guarded.grpc_address) as opened:
        yield opened


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def basic(key: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"me:{key}".encode()).decode()}


def metadata(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


def test_http_without_a_good_key_is_refused_as_openai_would(guarded):
    for headers in ({}, bearer("wrong"), basic("a"), {"Authorization": "Bearer \xff"}):
        status, answered, body = guarded.post("/v1/completions", BODY, **headers)
        assert (status, answered["www-authenticate"]) == (401, "Bearer")
        assert body["error"]["code"] == "invalid_api_key"
        assert guarded.get("/v1/models", **headers)[0] == 401
    assert guarded.service.num_sequences == 0


def test_whoever_sends_much_without_a_key_reads_why_it_is_refused(guarded):
    assert guarded.post("/v1/completions", b"x" * 20_000_000)[0] == 401


def test_probes_need_no_key(guarded, channel):
    assert guarded.get("/health")[0] == 200
    stub = health_pb2_grpc.HealthStub(channel)
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S).status == health_pb2.HealthCheckResponse.SERVING


def test_a_good_key_is_answered(guarded, channel):
    status, _, body = guarded.post("/v1/completions", BODY, **bearer("a"))
    assert (status, body["choices"][0]["text"]) == (200, "He")
    responses = list(InferenceServiceStub(channel).Generate(REQUEST, timeout=WAIT_S, metadata=metadata("a")))
    assert responses[-1].finished.usage.completion_tokens == 2


def test_what_an_operator_sees_takes_an_operators_key(guarded):
    for path in ADMIN_PATHS:
        assert guarded.get(path)[0] == 401
        assert guarded.get(path, **bearer("a"))[0] == 403
        expected = 404 if path == "/docs" else 200
        assert guarded.get(path, **bearer("r"))[0] == expected


def test_a_browser_asks_for_the_key_as_a_password_but_not_on_behalf_of_other_sites(guarded):
    assert guarded.get("/")[1]["www-authenticate"] == 'Basic realm="herd"'
    assert guarded.get("/status.json", **basic("r"), **{"Sec-Fetch-Site": "same-origin"})[0] == 200
    assert guarded.get("/status.json", **basic("r"), **{"Sec-Fetch-Site": "cross-site"})[0] == 401
    assert guarded.get("/status.json", Authorization="Basic !")[0] == 401


@pytest.mark.parametrize("key", [None, "wrong"])
def test_grpc_without_a_good_key_is_refused_whatever_the_call(guarded, channel, key):
    stub = InferenceServiceStub(channel)
    keys = None if key is None else metadata(key)
    for call in (
        lambda: list(stub.Generate(REQUEST, timeout=WAIT_S, metadata=keys)),
        lambda: stub.Tokenize(pb.TokenizeRequest(prompt="a"), timeout=WAIT_S, metadata=keys),
        lambda: stub.GetLoad(pb.GetLoadRequest(), timeout=WAIT_S, metadata=keys),
        lambda: list(
            reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=WAIT_S, metadata=keys
            )
        ),
    ):
        assert isinstance(refusal(call), errors.Unauthenticated)


def test_grpcs_operator_calls_take_an_operators_key(guarded, channel):
    stub = InferenceServiceStub(channel)
    for method, request in ((stub.GetServerInfo, pb.GetServerInfoRequest()), (stub.GetLoad, pb.GetLoadRequest())):
        found = refusal(lambda m=method, r=request: m(r, timeout=WAIT_S, metadata=metadata("a")))
        assert isinstance(found, errors.PermissionDenied)
        method(request, timeout=WAIT_S, metadata=metadata("r"))


def counted(door, api: str, code: str) -> float:
    labels = {"api": api, "code": code}
    return door.service.metrics.registry.get_sample_value("herd_requests_total", labels) or 0.0


def test_refused_requests_are_counted_each_once(guarded, channel):
    guarded.post("/v1/completions", BODY)
    guarded.post("/v1/chat/completions", BODY, **bearer("wrong"))
    for path in ("/v1/models", "/metrics", "/what/ever"):
        guarded.get(path)
    guarded.get("/metrics", **bearer("a"))
    guarded.post("/v1/completions", b"x" * 200_000, **bearer("a"))
    refusal(lambda: list(InferenceServiceStub(channel).Generate(REQUEST, timeout=WAIT_S)))
    expected = {("completions", "401"): 1, ("chat", "401"): 1, ("other", "401"): 3, ("other", "403"): 1}
    expected |= {("completions", "413"): 1, ("grpc", "UNAUTHENTICATED"): 1}
    assert {each: counted(guarded, *each) for each in expected} == expected


def test_a_request_beyond_the_quota_is_told_when_to_come_again(guarded, channel):
    assert guarded.post("/v1/completions", BODY, **bearer("o"))[0] == 200
    status, answered, body = guarded.post("/v1/completions", BODY, **bearer("o"))
    assert (status, body["error"]["code"], body["error"]["type"]) == (429, "rate_limit_exceeded", "rate_limit_error")
    assert 50 <= int(answered["retry-after"]) <= 60
    stub = InferenceServiceStub(channel)
    found = refusal(lambda: list(stub.Generate(REQUEST, timeout=WAIT_S, metadata=metadata("o"))))
    assert isinstance(found, errors.RateLimited)
    assert found.retry_after_ms > 50_000
    assert guarded.post("/v1/completions", BODY, **bearer("a"))[0] == 200


def test_tokens_beyond_the_quota_are_refused_at_the_next_request(guarded):
    assert guarded.post("/v1/completions", BODY, **bearer("f"))[0] == 200
    status, _, body = guarded.post("/v1/completions", json.dumps(BODY).encode(), **bearer("f"))
    assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded")


def test_the_command_line_takes_its_key_from_the_environment(guarded, monkeypatch, capsys):
    options = Options(prompt="Hello", raw=True, max_tokens=2)
    with pytest.raises(errors.Unauthenticated, match=f"environment's {API_KEY}"):
        stream_answer(options, guarded.grpc_address)
    monkeypatch.setenv(API_KEY, "a")
    stream_answer(options, guarded.grpc_address)
    assert capsys.readouterr().out == "He\n"


def unread_stream(guarded, key: str) -> socket.socket:
    """Ask for a stream and read none of it."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.settimeout(WAIT_S)
    host, port = guarded.http_address.split(":")
    connection.connect((host, int(port)))
    body = json.dumps({"prompt": "Hello", "stream": True}).encode()
    lines = ["POST /v1/completions HTTP/1.1", "Host: a", f"Authorization: Bearer {key}", f"Content-Length: {len(body)}"]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
    return connection


def test_a_key_has_no_more_streams_at_once_than_it_may_though_nobody_reads_them(guarded, router):
    router.script = babbles
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(unread_stream(guarded, "t"))
        wait_until(lambda: guarded.service.num_sequences == 2)
        for _ in range(20):
            refused = stack.enter_context(unread_stream(guarded, "t"))
            assert refused.recv(100).startswith(b"HTTP/1.1 429")
        router.script = says(72)
        assert guarded.post("/v1/completions", BODY, **bearer("a"))[0] == 200
    wait_until(lambda: guarded.service.num_sequences == 0)
    assert guarded.post("/v1/completions", BODY, **bearer("t"))[0] == 200


def test_choices_count_as_streams_and_priorities_are_the_keys(guarded):
    status, _, body = guarded.post("/v1/completions", BODY | {"n": 3}, **bearer("t"))
    assert (status, body["error"]["param"]) == (400, "n")
    assert guarded.post("/v1/completions", BODY | {"n": 2}, **bearer("t"))[0] == 200
    status, _, body = guarded.post("/v1/completions", BODY | {"priority": -1}, **bearer("a"))
    assert (status, body["error"]["param"]) == (403, "priority")
    assert guarded.post("/v1/completions", BODY | {"priority": 1}, **bearer("a"))[0] == 200


@pytest.mark.parametrize("path", ["//v1/models", "/V1/models", "/metrics/", "/v1/../metrics", "/v1/%2e%2e/metrics"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST"])
def test_no_spelling_of_a_path_shows_more_than_its_key_may_see(guarded, path, method):
    for headers in ({}, bearer("a")):
        status, answered, text = guarded.call(method, path, None, headers)
        assert status in (401, 403, 404, 405)
        assert "herd_info" not in text
        assert "location" not in answered


def test_routers_are_told_on_whose_behalf_they_generate_and_who_is_held_to_an_even_share(guarded, router):
    for key in "ah":
        assert guarded.post("/v1/completions", BODY, **bearer(key))[0] == 200
    assert [(each.tenant, each.even_share) for each in router.requests] == [("alice", False), ("held", True)]
