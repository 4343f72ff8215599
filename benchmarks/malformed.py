"""Malformed requests against a running demo: what crashes, what answers 5xx or INTERNAL, what memory is left.

    python -m benchmarks.malformed --requests 10000 --seed 0

A third each: HTTP (bodies by the fields of our OpenAPI page, and connections that are no HTTP), gRPC (bytes of requests
changed), and what routers send expert replicas (bytes of frames changed). Exits with 1 where a server failed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import torch

from benchmarks.chaos.application import Application
from benchmarks.mutations import mutate_bytes, mutate_json, raw_http
from cluster.launch.processes import descendants
from protos.channel import channel_options
from protos.codec import encode_tensor
from protos.expert.v1 import expert_pb2
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1.inference_pb2_grpc import InferenceServiceStub
from protos.weights.v1 import weights_pb2

Counts = Counter[str]
WAIT_S = 10.0
_SETTINGS = ("model.context_length=64", "http.host=127.0.0.1")
_INFERENCE = "/herd.inference.v1.InferenceService/"
_FAILED = ("HTTP 5", "INTERNAL", "UNKNOWN", "gone", "late")
"""How the outcomes begin that no malformed request may have."""


def main() -> int:
    """Serve, send, count, ask a good one; return the exit code."""
    options = _options()
    rng = random.Random(options.seed)
    num_each = options.requests // 3
    with Application(_SETTINGS) as application:
        for _ in range(3):
            ask(application.grpc_address)
        address, fingerprint, hidden_size = expert_replica(application.grpc_address)
        parts: list[tuple[str, Callable[[int], Counts]]] = [
            ("HTTP", lambda n: send_http(application.http_port, n, rng)),
            ("gRPC", lambda n: send_grpc(application.grpc_address, n, rng)),
            ("router to expert", lambda n: send_frames(address, fingerprint, hidden_size, n, rng)),
        ]
        for _, send in parts:
            send(max(num_each // 10, 1))  # what memory allocators keep for good
        ask(application.grpc_address)
        processes, before = set(descendants(application.pid)), resident_bytes(application.pid)
        failed = 0
        for name, send in parts:
            began = time.monotonic()
            counts = send(num_each)
            print(f"{name}: {num_each} in {time.monotonic() - began:.0f} s: {dict(counts.most_common())}", flush=True)
            failed += failures(counts)
        began = time.monotonic()
        ask(application.grpc_address)
        print(f"a good request right after: {(time.monotonic() - began) * 1000:.0f} ms")
        after = resident_bytes(application.pid)
        print(f"memory of all processes: {before / 1e6:.0f} MB before, {after / 1e6:.0f} MB after")
        gone = processes - set(descendants(application.pid))
        print(f"failures: {failed}; processes gone: {len(gone)}")
    return 1 if failed or gone else 0


def failures(counts: Counts) -> int:
    """Count the outcomes that are the server's fault."""
    return sum(count for outcome, count in counts.items() if outcome.startswith(_FAILED))


def send_http(port: int, num: int, rng: random.Random) -> Counts:
    """Send so many malformed requests over HTTP; return how they ended."""
    counts: Counts = Counter()
    schemas = _schemas(port)
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": "Hello", "max_tokens": 1},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1},
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    for _ in range(num):
        if rng.random() < 0.3:
            counts[_send_raw(port, raw_http(rng))] += 1
            continue
        path = rng.choice(tuple(bodies))
        body = mutate_json(bodies[path], schemas[path], rng)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
            counts[f"HTTP {response.status}"] += 1
            if response.status >= 500 or b"Traceback" in text:
                print(f"{path} {body[:300]!r} -> {response.status} {text[:300]!r}", file=sys.stderr)
        except TimeoutError:
            counts["late"] += 1
            connection.close()
        except (OSError, http.client.HTTPException):
            counts["closed"] += 1
            connection.close()
    connection.close()
    return counts


def send_grpc(address: str, num: int, rng: random.Random) -> Counts:
    """Send so many calls with changed bytes; return how they ended."""
    sampling = pb.Sampling(temperature=0.5, top_k=3, seed=7)
    stopping = pb.Stopping(max_tokens=1, stop=["x"], stop_token_ids=[3])
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="Hello")])
    samples: list[tuple[str, bool, Any]] = [
        ("Generate", True, pb.GenerateRequest(prompt="Hello", sampling=sampling, stopping=stopping, logprobs=2)),
        ("Generate", True, pb.GenerateRequest(chat=chat, stopping=stopping, num_choices=2)),
        ("Generate", True, pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5, 6, 7]), stopping=stopping)),
        ("Tokenize", False, pb.TokenizeRequest(chat=chat)),
        ("GetLoad", False, pb.GetLoadRequest()),
    ]
    counts: Counts = Counter()
    with grpc.insecure_channel(address) as channel:
        for _ in range(num):
            name, is_stream, sample = rng.choice(samples)
            data = mutate_bytes(sample.SerializeToString(), rng)
            method = channel.unary_stream(_INFERENCE + name) if is_stream else channel.unary_unary(_INFERENCE + name)
            counts[_outcome(lambda m=method, d=data, s=is_stream: _exhaust(m(d, timeout=WAIT_S), s), data)] += 1
    return counts


def send_frames(address: str, fingerprint: str, hidden_size: int, num: int, rng: random.Random) -> Counts:
    """Send an expert replica so many changed messages, on streams of their own; return how these ended."""
    hello = expert_pb2.DispatchRequest(hello=expert_pb2.Hello(router_id="test", model_fingerprint=fingerprint))
    fetch = weights_pb2.FetchRequest(model_fingerprint=fingerprint, expert_id=1, element=1, tokens=1)
    counts: Counts = Counter()
    with grpc.insecure_channel(address, options=channel_options()) as channel:
        dispatch = channel.stream_stream("/herd.expert.v1.ExpertService/Dispatch")
        fetching = channel.unary_stream("/herd.weights.v1.WeightsService/Fetch")
        for number in range(num):
            if rng.random() < 0.2:
                data = mutate_bytes(fetch.SerializeToString(), rng)
                counts[_outcome(lambda d=data: _exhaust(fetching(d, timeout=WAIT_S), True), data)] += 1
                continue
            sound = expert_pb2.DispatchRequest(
                dispatch=expert_pb2.Dispatch(
                    dispatch_id=number + 1,
                    layer=rng.choice((0, 1, 1, 3)),
                    expert_ids=[0, 1],
                    token_counts=[1, 2],
                    hidden=encode_tensor(torch.zeros(3, hidden_size)),
                )
            )
            greeting = hello.SerializeToString()
            frames = [mutate_bytes(greeting, rng) if rng.random() < 0.3 else greeting]
            frames += [mutate_bytes(_short(sound, rng).SerializeToString(), rng) for _ in range(rng.randint(0, 2))]
            counts[_outcome(lambda f=frames: _answers(dispatch(iter(f), timeout=WAIT_S)), frames[-1])] += 1
    return counts


def ask(address: str) -> None:
    """Ask a good question; raises if it is not answered."""
    with grpc.insecure_channel(address) as channel:
        request = pb.GenerateRequest(prompt="def f(x):", stopping=pb.Stopping(max_tokens=8, ignore_eos=True))
        *_, last = InferenceServiceStub(channel).Generate(request, timeout=60)
        assert last.finished.usage.completion_tokens == 8, last


def expert_replica(address: str) -> tuple[str, str, int]:
    """Return an expert replica's address, its model's fingerprint and width."""
    with grpc.insecure_channel(address) as channel:
        info = InferenceServiceStub(channel).GetServerInfo(pb.GetServerInfoRequest(), timeout=WAIT_S)
    found = str(info.expert_replicas[0].address)
    with grpc.insecure_channel(found, options=channel_options()) as channel:
        describe = channel.unary_unary(
            "/herd.expert.v1.ExpertService/Describe", response_deserializer=expert_pb2.DescribeResponse.FromString
        )
        held = describe(b"", timeout=WAIT_S)
    return found, held.model_fingerprint, held.hidden_size


def _short(request: expert_pb2.DispatchRequest, rng: random.Random) -> expert_pb2.DispatchRequest:
    """Return a dispatch, mostly without its tensor's bytes: else nearly every change would fall into those."""
    if rng.random() < 0.7:
        request.dispatch.hidden.ClearField("data")
    return request


def _exhaust(answer: Any, is_stream: bool) -> str:
    if is_stream:
        for _ in answer:
            pass
    return "OK"


def _answers(stream: Iterable[bytes]) -> str:
    """Read a Dispatch stream to its end; return the worst that it said."""
    said = "OK"
    for data in stream:
        response = expert_pb2.DispatchResponse.FromString(data)
        if response.WhichOneof("message") == "error":
            code = response.error.code
            said = next((each.name for each in grpc.StatusCode if each.value[0] == code), str(code))
            if said == "INTERNAL":
                return said
    return said


def _outcome(call: Callable[[], str], data: bytes) -> str:
    try:
        said = call()
    except grpc.RpcError as error:
        said = str(error.code().name)
        if said == "UNAVAILABLE":
            said = "gone"
        if said == "DEADLINE_EXCEEDED":
            said = "late"
        if said.startswith(_FAILED):
            print(f"{data[:300]!r} -> {error.code().name} {error.details()}", file=sys.stderr)
        return said
    if said == "INTERNAL":
        print(f"{data[:300]!r} -> INTERNAL in an answer", file=sys.stderr)
    return said


def _send_raw(port: int, data: bytes) -> str:
    """Send bytes, say that there are no more, and return the answer's status or what else came of it."""
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as connection:
        answer = b""
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while len(answer) < 65_536 and (more := connection.recv(65_536)):
                answer += more
        except TimeoutError:
            return "late"
        except OSError:
            pass
    if not answer.startswith(b"HTTP/"):
        return "closed"
    status = answer.split(b" ", 2)[1].decode()
    if status.startswith("5"):
        print(f"{data[:300]!r} -> {answer[:300]!r}", file=sys.stderr)
    return f"HTTP {status}"


def _schemas(port: int) -> dict[str, tuple[str, ...]]:
    """Return the fields of every body that our OpenAPI page tells of, by path."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    connection.request("GET", "/openapi.json")
    page = json.loads(connection.getresponse().read())
    connection.close()
    return {
        path: tuple(methods["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"])
        for path, methods in page["paths"].items()
        if "post" in methods
    }


def resident_bytes(pid: int) -> int:
    """Return the memory of the processes below one, what they share counted for each."""
    total = 0
    for each in descendants(pid):
        with suppress(OSError):
            total += int(Path(f"/proc/{each}/statm").read_text().split()[1]) * 4096
    return total


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.malformed", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="how many (10000)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (0)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
