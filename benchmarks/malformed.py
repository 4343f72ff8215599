"""Malformed requests against a running demo: what crashes, what answers 5xx or INTERNAL, what memory is left.

    python -m benchmarks.malformed --requests 10000 --seed 0

A third each: HTTP (two thirds of it by schemathesis from our OpenAPI page, right and wrong, the rest bodies and
connections that are no HTTP), gRPC (bytes of requests changed), and what routers send expert replicas (bytes of frames
changed). Before that, good requests of every length and the largest that are allowed, several at once, and malformed
ones let caches and allocators grow to what they keep. Memory is read by process at several points. Exits with 1 where a
server failed, an answer was other than the page says, or a process of Herd's surely grew by more than so much per 1,000
requests in the second half.
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
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import torch

from benchmarks.chaos.application import Application
from benchmarks.mutations import mutate_bytes, mutate_json, raw_http
from benchmarks.page_requests import send_by_page
from benchmarks.process_memory import MemoryWatch
from cluster.launch.processes import descendants
from cluster.limits import MAX_CHOICES, MAX_LOGPROBS, MAX_SEQUENCES
from protos.channel import channel_options
from protos.codec import encode_tensor
from protos.expert.v1 import expert_pb2
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1.inference_pb2_grpc import InferenceServiceStub
from protos.weights.v1 import weights_pb2

Counts = Counter[str]
WAIT_S = 10.0
_GENERATION_S = 120.0
"""How long a request by the page may take: some are right, and ask for many answers."""
_CONTEXT_LENGTH, _ANSWER_TOKENS = 32, 8
_BOUNDARIES = 1000
"""Requests by the page from which on the limits of every field are tried as well: those are about so many."""
_AT_ONCE = 6
_LARGEST_AT_ONCE = 2
"""A third would be refused: the line has room for two."""
_SETTINGS = (
    f"model.context_length={_CONTEXT_LENGTH}",
    "http.host=127.0.0.1",
    # Libraries keep what they made for each number of tokens that a step had: here those are soon all seen.
    "router.slots=4",
    "router.step_tokens=32",
)
_INFERENCE = "/herd.inference.v1.InferenceService/"
_FAILED = ("HTTP 5", "INTERNAL", "UNKNOWN", "gone", "late", "failed")
"""How the outcomes begin that no malformed request may have."""


def main() -> int:
    """Serve, send, count, ask a good one; return the exit code."""
    options = _options()
    with Application(_SETTINGS) as application:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            lengths = [index % (_CONTEXT_LENGTH - _ANSWER_TOKENS - 1) + 1 for index in range(options.good)]
            list(pool.map(lambda length: ask(application.grpc_address, length), lengths))
        with ThreadPoolExecutor(_LARGEST_AT_ONCE) as pool:
            largest = [*largest_bodies().items()] * options.largest
            list(pool.map(lambda each: ask_largest(application.http_port, *each), largest))
        mix = Mix(application, options.seed)
        mix.send(options.warm_up)
        mix.counts.clear()
        memory = MemoryWatch(application.pid)
        memory.read(0)
        processes = set(descendants(application.pid))
        for _ in range(options.points):
            began = time.monotonic()
            mix.send(options.requests // options.points)
            size = memory.read(mix.num_requests)
            print(f"{mix.num_requests} after {time.monotonic() - began:.0f} s more: {size / 1e6:.0f} MB", flush=True)
        began = time.monotonic()
        ask(application.grpc_address)
        took_ms = (time.monotonic() - began) * 1000
        gone = processes - set(descendants(application.pid))
    for name, counts in mix.counts.items():
        print(f"{name}: {sum(counts.values())}: {dict(counts.most_common())}")
    print(f"a good request right after: {took_ms:.0f} ms")
    print("\n".join(memory.table()))
    growing = memory.growing(options.flat)
    print(
        f"processes that grew by more than {options.flat} MB per 1,000 requests of the second half: {growing or 'none'}"
    )
    failed = sum(map(failures, mix.counts.values()))
    print(f"failures: {failed}; processes gone: {len(gone)}")
    return 1 if failed or gone or growing else 0


class Mix:
    """Sends malformed requests of every kind, and counts how they end.

    Args:
        application: which they are sent to.
        seed: of all that is random.
    """

    def __init__(self, application: Application, seed: int) -> None:
        self._application = application
        self._rng = random.Random(seed)
        self._page_seed = seed * 1_000_000
        self._expert = expert_replica(application.grpc_address)
        self.counts: dict[str, Counts] = {}
        """How they ended, by kind."""

    @property
    def num_requests(self) -> int:
        """Count those that were sent."""
        return sum(sum(each.values()) for each in self.counts.values())

    def send(self, num: int) -> None:
        """Send about so many, a third of each kind."""
        num_http, num_each = num // 9, num // 3
        application, rng = self._application, self._rng
        self._count("HTTP by the page", self._send_by_page(num_each - num_http))
        self._count("HTTP", send_http(application.http_port, num_http, rng))
        self._count("gRPC", send_grpc(application.grpc_address, num_each, rng))
        self._count("router to expert", send_frames(*self._expert, num_each, rng))

    def _count(self, name: str, counts: Counts) -> None:
        self.counts.setdefault(name, Counter()).update(counts)

    def _send_by_page(self, num: int) -> Counts:
        counts: Counts = Counter()
        while (left := num - counts["as the page says"]) > 0:
            self._page_seed += 1
            report = send_by_page(
                self._application.base_url,
                most_per_operation=min(max(left // 3, 1), 300),
                seed=self._page_seed,
                has_boundaries=left > _BOUNDARIES,
                wait_s=_GENERATION_S,
            )
            counts["as the page says"] += report.num_requests
            if report.failures:
                counts["failed: other than the page says"] += len(report.failures)
                print(report.output, file=sys.stderr)
        return counts


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


def ask(address: str, num_tokens: int = 10) -> None:
    """Ask a good question of so many tokens; raises if it is not answered."""
    with grpc.insecure_channel(address) as channel:
        ids = pb.TokenIds(ids=range(1, num_tokens + 1))
        request = pb.GenerateRequest(token_ids=ids, stopping=pb.Stopping(max_tokens=_ANSWER_TOKENS, ignore_eos=True))
        *_, last = InferenceServiceStub(channel).Generate(request, timeout=60)
        assert last.finished.usage.completion_tokens == _ANSWER_TOKENS, last


def largest_bodies() -> dict[str, dict[str, Any]]:
    """Return a body for each path of HTTP that asks for as much as one request may."""
    common = {"n": MAX_CHOICES, "max_tokens": _ANSWER_TOKENS, "ignore_eos": True, "seed": 1}
    common |= {"temperature": 1.5, "top_p": 0.9, "presence_penalty": 1, "frequency_penalty": 1}
    prompts = [list(range(1, _CONTEXT_LENGTH - _ANSWER_TOKENS))] * (MAX_SEQUENCES // MAX_CHOICES)
    messages = [{"role": "user", "content": "Hello"}]
    return {
        "/v1/completions": common | {"prompt": prompts, "logprobs": MAX_LOGPROBS, "prompt_logprobs": MAX_LOGPROBS},
        "/v1/chat/completions": common | {"messages": messages, "logprobs": True, "top_logprobs": MAX_LOGPROBS},
    }


def ask_largest(port: int, path: str, body: dict[str, Any]) -> None:
    """Ask a question as large as one may be; raises if it is not answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_GENERATION_S)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    assert response.status == 200, text


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


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.malformed", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="how many (10000)")
    parser.add_argument("--points", type=int, default=24, help="how often memory is read meanwhile (24)")
    parser.add_argument("--good", type=int, default=1000, help="good ones of every length before that (1000)")
    parser.add_argument("--largest", type=int, default=6, help="of each path of HTTP, as large as one may be (6)")
    parser.add_argument("--warm-up", type=int, default=3000, help="malformed ones after those (3000)")
    parser.add_argument(
        "--flat", type=float, default=0.5, help="MB per 1,000 requests that a process may grow by (0.5)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (0)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
