"""Clients that misbehave beside a client that does not: what the other one notices.

    python -m benchmarks.abuse --rounds 5 --name abuse

In every round the same light load runs alone before each case, so that what else happens on the machine falls on both:
beside as many long answers as the abusers' key may have at once, read by whoever asked; beside 1,000 connections of
that key that ask for the same and read nothing, and ask again when they are closed; beside bodies of 500 MB, one after
the other; beside requests with a wrong key, as fast as they are refused. The first is no abuse, but a key with many
requests beside one with few. Abusers run in a process of their own, of the lowest priority, for the cores are those of
the server. Percentiles are of all rounds together. Exits with 1 where a good request failed, or where a p99 is more
than 1.5 times that alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, suppress
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import grpc

from benchmarks.chaos.application import Application
from benchmarks.environment import describe_environment
from benchmarks.process_memory import MemoryWatch
from benchmarks.rounds import write_rounds
from cluster.auth.key_file import KeyEntry, add_key, key_hash, new_key
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1.inference_pb2_grpc import InferenceServiceStub

_TOKENS = 8
_CHUNK = b"x" * 65_536
_BODY_BYTES = 500_000_000
_WAIT_S = 120.0
_SETTLE_S = 1.0
_MOST = 1.5
"""Times its p99 alone that a good client's may be."""
_ALONE, _READING = "alone", "beside those that read"
Outcomes = Counter[str]


def main() -> int:
    """Run the rounds; return the exit code."""
    options = _options()
    environment = describe_environment("grpcio", "uvicorn", "ray", "torch")
    good_key, bad_key = new_key(), new_key()
    not_reading = f"beside {options.readers} that do not read"
    took_s: dict[str, list[float]] = {_ALONE: []}
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder, "keys.yaml")
        add_key(keys, KeyEntry(name="good", sha256=key_hash(good_key)))
        add_key(
            keys, KeyEntry(name="bad", sha256=key_hash(bad_key), streams=options.streams, even_share=options.even_share)
        )
        with Application(["http.host=127.0.0.1", f"auth.keys_file={keys}"]) as application:
            good, memory = Good(application.grpc_address, good_key), MemoryWatch(application.pid)
            good.run(3)
            before = memory.read(0)
            cases: dict[str, tuple[Callable[..., Outcomes], int]] = {
                _READING: (ask_and_read, options.streams),
                not_reading: (ask_and_hold, options.readers),
                "beside bodies of 500 MB": (send_bodies, 1),
                "beside wrong keys": (ask_with_wrong_key, 1),
            }
            for number in range(options.rounds):
                figures: dict[str, float] = {}
                for name, (abuse, num) in cases.items():
                    alone = good.run(options.seconds)
                    with abused(abuse, num, application.http_port, bad_key, options.tokens) as outcomes:
                        beside = good.run(options.seconds)
                    print(f"round {number}, {name}: {len(beside)} answers, {dict(outcomes)}", flush=True)
                    took_s[_ALONE] += alone
                    took_s.setdefault(name, []).extend(beside)
                    figures[f"{name}: p50 s"] = statistics.median(beside)
                    figures[f"{name}: p50 / alone"] = statistics.median(beside) / statistics.median(alone)
                    figures[f"{name}: p99 / alone"] = _p99(beside) / _p99(alone)
                    good.run(_SETTLE_S)
                rounds.append(figures)
            print(f"memory of all processes: {before / 1e6:.0f} MB before, {memory.read(0) / 1e6:.0f} MB after")
    p99 = {name: _p99(each) for name, each in took_s.items()}
    for name, each in took_s.items():
        ratio = f"{p99[name] / p99[_ALONE]:.2f} x alone"
        print(f"{name}: {len(each)} answers, p50 {statistics.median(each):.3f} s, p99 {p99[name]:.3f} s, {ratio}")
    explanation = (
        f"One client's answers of {_TOKENS} tokens over gRPC, alone and beside abusers, in turns; goal: p99 at most "
        f"{_MOST} times that alone."
    )
    print(write_rounds("Clients that misbehave", explanation, rounds, options, environment))
    too_slow = [name for name in p99 if p99[name] > _MOST * p99[_ALONE]]
    print(f"too slow: {too_slow or 'none'}; failed: {len(good.failures)}")
    return 1 if good.failures or too_slow else 0


class Good:
    """A client that asks one thing after the other, and reads what it is told.

    Args:
        address: of gRPC.
        key: API key.
    """

    def __init__(self, address: str, key: str) -> None:
        self._stub = InferenceServiceStub(grpc.insecure_channel(address))
        self._metadata = (("authorization", f"Bearer {key}"),)
        self.failures: list[str] = []

    def run(self, seconds: float) -> list[float]:
        """Ask for so long; return the seconds each answer took."""
        took_s: list[float] = []
        end = time.monotonic() + seconds
        while time.monotonic() < end or not took_s:
            began = time.monotonic()
            request = pb.GenerateRequest(
                prompt=f"def f{len(took_s)}(x):", stopping=pb.Stopping(max_tokens=_TOKENS, ignore_eos=True)
            )
            try:
                for _ in self._stub.Generate(request, timeout=_WAIT_S, metadata=self._metadata):
                    pass
            except grpc.RpcError as error:
                self.failures.append(f"{error.code().name}: {error.details()}")
                print(f"a good request failed: {self.failures[-1]}", flush=True)
                if len(self.failures) > 100:
                    raise
                time.sleep(0.5)
            else:
                took_s.append(time.monotonic() - began)
        return took_s


@contextmanager
def abused(abuse: Callable[..., Outcomes], *arguments: Any) -> Any:
    """Run an abuser in another process meanwhile; afterwards the yielded counter says what it was told."""
    spawn = multiprocessing.get_context("spawn")
    ending, told = spawn.Event(), spawn.Queue()
    process = spawn.Process(target=_run, args=(abuse, arguments, ending, told), daemon=True)
    process.start()
    outcomes: Outcomes = Counter()
    try:
        assert told.get(timeout=_WAIT_S) == "begun"
        yield outcomes
    finally:
        ending.set()
        outcomes.update(told.get(timeout=_WAIT_S))
        process.join(_WAIT_S)


def _run(abuse: Callable[..., Outcomes], arguments: tuple[Any, ...], ending: Event, told: Queue[Any]) -> None:
    os.nice(19)  # elsewhere, abusers take none of the server's time
    told.put("begun")
    told.put(abuse(ending, *arguments))


def ask_and_read(ending: Event, num: int, port: int, key: str, tokens: int) -> Outcomes:
    """Ask so often at once for long answers, and read them."""
    outcomes: Outcomes = Counter()

    def one() -> None:
        while not ending.is_set():
            with _connection(port) as connection, suppress(OSError):
                _ask(connection, key, tokens)
                found = answer = connection.recv(65_536)
                while answer and b"[DONE]" not in answer and not ending.is_set():
                    answer = connection.recv(65_536)
                outcomes[_status(found)] += 1

    threads = [threading.Thread(target=one) for _ in range(num)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return outcomes


def ask_and_hold(ending: Event, num: int, port: int, key: str, tokens: int) -> Outcomes:
    """Ask so often at once for long answers and read none; ask again where the server has closed."""
    outcomes: Outcomes = Counter()
    held: list[socket.socket] = []
    while not ending.is_set():
        for connection in [each for each in held if not _is_open(each)]:
            outcomes[_answer(connection)] += 1
            connection.close()
            held.remove(connection)
        while len(held) < num and not ending.is_set():
            with suppress(OSError):
                held.append(_connection(port, room=1024))
                _ask(held[-1], key, tokens)
        ending.wait(0.2)
    outcomes["held at the end"] += sum(map(_is_open, held))
    for connection in held:
        connection.close()
    return outcomes


def send_bodies(ending: Event, _: int, port: int, key: str, __: int) -> Outcomes:
    """Send bodies of 500 MB, one after the other."""
    outcomes: Outcomes = Counter()
    while not ending.is_set():
        with _connection(port) as connection:
            with suppress(OSError):
                connection.sendall(_head(_BODY_BYTES, key))
                for _ in range(_BODY_BYTES // len(_CHUNK)):
                    connection.sendall(_CHUNK)
            outcomes[_answer(connection)] += 1
    return outcomes


def ask_with_wrong_key(ending: Event, _: int, port: int, __: str, tokens: int) -> Outcomes:
    """Ask with a key that is nobody's, again and again."""
    outcomes: Outcomes = Counter()
    while not ending.is_set():
        with _connection(port) as connection, suppress(OSError):
            _ask(connection, "wrong", tokens)
            outcomes[_answer(connection)] += 1
    return outcomes


def _connection(port: int, room: int = 0) -> socket.socket:
    """Connect, with room for next to nothing of an answer where it is given."""
    connection = socket.socket()
    if room:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    connection.settimeout(_WAIT_S)
    connection.connect(("127.0.0.1", port))
    return connection


def _ask(connection: socket.socket, key: str, tokens: int) -> None:
    """Ask for a long streamed answer."""
    body = json.dumps({"prompt": "Hello", "max_tokens": tokens, "stream": True, "ignore_eos": True}).encode()
    connection.sendall(_head(len(body), key) + body)


def _is_open(connection: socket.socket) -> bool:
    """Tell whether the server has not closed a connection, reading nothing of it."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x01"  # established


def _answer(connection: socket.socket) -> str:
    try:
        return _status(connection.recv(4096))
    except OSError as error:
        return type(error).__name__


def _status(answer: bytes) -> str:
    return answer.split(b"\r\n", 1)[0].decode() or "closed"


def _head(num_bytes: int, key: str) -> bytes:
    lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"Content-Length: {num_bytes}", f"Authorization: Bearer {key}"]
    return "\r\n".join([*lines, "", ""]).encode()


def _p99(took_s: list[float]) -> float:
    return statistics.quantiles(took_s, n=100, method="inclusive")[98] if len(took_s) > 1 else took_s[0]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.abuse", description=__doc__)
    parser.add_argument("--readers", type=int, default=1000, help="clients that do not read (1000)")
    parser.add_argument("--seconds", type=float, default=10, help="of each phase (10)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each case is run (5)")
    parser.add_argument("--streams", type=int, default=8, help="requests at once that their key allows (8)")
    parser.add_argument(
        "--even-share",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="give it `even_share`, as strangers' keys should have (yes)",
    )
    parser.add_argument("--tokens", type=int, default=1000, help="of each of their answers (1000)")
    parser.add_argument("--name", default="", help="of the files under benchmarks/results; none: none are written")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
