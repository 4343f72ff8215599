"""Clients that misbehave beside clients that do not: what the others notice.

    python -m benchmarks.abuse --readers 1000

Four phases of the same light load: alone; beside as many long answers as the abusers' key may have at once, read by
whoever asked; beside 1,000 connections of that key that ask for the same and read nothing; beside one that sends a body
of 500 MB. What the third adds to the second is what it costs that nobody reads. Exits with 1 where a good one failed.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc

from benchmarks.chaos.application import Application
from benchmarks.malformed import resident_bytes
from cluster.auth.key_file import KeyEntry, add_key, key_hash, new_key
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1.inference_pb2_grpc import InferenceServiceStub

_TOKENS = 8
_CHUNK = b"x" * 65_536
_BODY_BYTES = 500_000_000
_WAIT_S = 120.0


def main() -> int:
    """Run the phases; return the exit code."""
    options = _options()
    good_key, bad_key = new_key(), new_key()
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder, "keys.yaml")
        add_key(keys, KeyEntry(name="good", sha256=key_hash(good_key)))
        add_key(keys, KeyEntry(name="bad", sha256=key_hash(bad_key), streams=options.streams))
        with Application(["http.host=127.0.0.1", f"auth.keys_file={keys}"]) as application:
            good = Good(application.grpc_address, good_key)
            good.run(3)
            port, found = application.http_port, {}
            found["alone"] = good.run(options.seconds)
            before = resident_bytes(application.pid)
            with ExitStack() as stack:
                reading = [_ask_much(port, bad_key, options.tokens, stack) for _ in range(options.streams)]
                threads = [threading.Thread(target=_read_all, args=(each,)) for each in reading]
                for each in threads:
                    each.start()
                found[f"beside {options.streams} that read"] = good.run(options.seconds)
                for each in threads:
                    each.join()
            with ExitStack() as stack:
                silent = [_ask_much(port, bad_key, options.tokens, stack) for _ in range(options.readers)]
                found[f"beside {options.readers} that do not read"] = good.run(options.seconds)
                during = resident_bytes(application.pid)
                print(f"what they had been told: {dict(Counter(_status(each) for each in silent))}")
            outcome: list[str] = []
            sending = threading.Thread(target=lambda: outcome.append(_send_body(port, bad_key)))
            sending.start()
            found["beside a body of 500 MB"] = good.run(options.seconds)
            sending.join()
        print(f"that body was answered: {outcome[0]}")
        print(f"memory of all processes: {before / 1e6:.0f} MB alone, {during / 1e6:.0f} MB beside those")
        for name, took_s in found.items():
            print(f"{name}: {len(took_s)} answers, median {statistics.median(took_s):.3f} s, p99 {_p99(took_s):.3f} s")
    return 1 if good.failures else 0


class Good:
    """A client that asks one thing after the other, and reads what it is told.

    Args:
        address: of gRPC.
        key: API key; empty: none.
    """

    def __init__(self, address: str, key: str) -> None:
        self._stub = InferenceServiceStub(grpc.insecure_channel(address))
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self.failures: list[str] = []

    def run(self, seconds: float) -> list[float]:
        """Ask for so long; return the seconds each answer took."""
        took_s: list[float] = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
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
                time.sleep(0.5)
            else:
                took_s.append(time.monotonic() - began)
        return took_s


def _ask_much(port: int, key: str, tokens: int, stack: ExitStack) -> socket.socket:
    """Ask for a long streamed answer, with room for next to nothing of it; the stack closes the connection."""
    connection = stack.enter_context(socket.socket())
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.settimeout(_WAIT_S)
    connection.connect(("127.0.0.1", port))
    body = json.dumps({"prompt": "Hello", "max_tokens": tokens, "stream": True, "ignore_eos": True}).encode()
    connection.sendall(_head(len(body), key) + body)
    return connection


def _read_all(connection: socket.socket) -> None:
    with suppress(OSError):
        while b"[DONE]" not in connection.recv(65_536):
            pass


def _status(connection: socket.socket) -> str:
    """Return the status line that waits to be read."""
    connection.settimeout(0.01)
    try:
        return connection.recv(256).split(b"\r\n", 1)[0].decode()
    except OSError as error:
        return type(error).__name__


def _send_body(port: int, key: str) -> str:
    """Send 500 MB; return the status line, or how it ended."""
    with socket.create_connection(("127.0.0.1", port), timeout=_WAIT_S) as connection:
        with suppress(OSError):
            connection.sendall(_head(_BODY_BYTES, key))
            for _ in range(_BODY_BYTES // len(_CHUNK)):
                connection.sendall(_CHUNK)
        try:
            return connection.recv(4096).split(b"\r\n", 1)[0].decode() or "closed"
        except OSError as error:
            return str(error)


def _head(num_bytes: int, key: str) -> bytes:
    lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"Content-Length: {num_bytes}", *([f"Authorization: Bearer {key}"] if key else [])]
    return "\r\n".join([*lines, "", ""]).encode()


def _p99(took_s: list[float]) -> float:
    return statistics.quantiles(took_s, n=100, method="inclusive")[98]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.abuse", description=__doc__)
    parser.add_argument("--readers", type=int, default=1000, help="clients that do not read (1000)")
    parser.add_argument("--seconds", type=float, default=20, help="of each phase (20)")
    parser.add_argument("--streams", type=int, default=8, help="requests at once that their key allows (8)")
    parser.add_argument("--tokens", type=int, default=1000, help="of each of their answers (1000)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
