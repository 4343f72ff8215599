"""The processes `dispatch.py` and `dispatch_lanes.py` measure.

An expert replica with random weights, one that only doubles its tokens, and a bare gRPC echo.

Each prints one line of JSON once it serves, and ends when its standard input is closed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent import futures
from dataclasses import replace
from pathlib import Path

import grpc
import torch
from torch import Tensor

from experts.server import ExpertServer
from experts.weights import ExpertWeights
from models.arena import Arena
from models.config import ModelConfig
from models.presets import SCOUT

ECHO_METHOD = "/echo.Echo/Exchange"
LAYER = 0


class RandomExperts:
    """An ExpertSource with one MoE layer of random weights that no disk holds.

    Args:
        hidden_size: D.
        expert_width: F.
        num_experts: E.
    """

    fingerprint = "random"
    bytes_read = 0

    def __init__(self, hidden_size: int, expert_width: int, num_experts: int) -> None:
        self.config: ModelConfig = replace(
            SCOUT,
            num_layers=1,
            moe_layers=(LAYER,),
            hidden_size=hidden_size,
            expert_width=expert_width,
            num_experts=num_experts,
        )

    def num_bytes(self, name: str) -> int:
        """Return 0: nothing is read."""
        return 0

    def read(self, name: str, dtype: torch.dtype | None = None, memory: Arena | None = None) -> Tensor:
        """Return a weight made from its name: the same in every process."""
        width, hidden = self.config.expert_width, self.config.hidden_size
        shape = (hidden, 2 * width) if name.endswith("gate_up") else (width, hidden)
        generator = torch.Generator().manual_seed(int("".join(filter(str.isdecimal, name))) + len(name))
        return (torch.randn(shape, generator=generator) * shape[0] ** -0.5).to(dtype)

    def load(self, dtype: torch.dtype) -> ExpertWeights:
        """Return all experts, resident."""
        return ExpertWeights.load(self, range(self.config.num_experts), dtype)


def serve_echo(unix_path: Path) -> None:
    """Send every message back: the least a stream of grpcio can do."""

    def echo(requests: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
        yield from requests

    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
    _, service, method = ECHO_METHOD.split("/")
    handler = grpc.stream_stream_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.add_insecure_port(f"unix:{unix_path}")
    server.start()
    _tell_and_wait(f"127.0.0.1:{port}", f"unix:{unix_path}")
    server.stop(0).wait()


def serve_experts(unix_path: Path, source: RandomExperts, dtype: torch.dtype) -> None:
    """Serve every expert of the random layer."""
    server = ExpertServer(source.load(dtype), unix_path=unix_path)
    server.start()
    _tell_and_wait(server.address, str(server.unix_address))
    server.stop()


class DoublingExperts(ExpertWeights):
    """Experts that double their tokens: next to nothing to compute."""

    def run(self, layer: int, hidden_ND: Tensor, expert_ids: Sequence[int], token_counts: Sequence[int]) -> Tensor:
        """Return the tokens, doubled."""
        return hidden_ND * 2


def serve_doubling(unix_path: Path, source: RandomExperts, dtype: torch.dtype) -> None:
    """Serve experts that only double."""
    held = DoublingExperts.load(source, range(source.config.num_experts), dtype)
    server = ExpertServer(held, unix_path=unix_path)
    server.start()
    _tell_and_wait(server.address, str(server.unix_address))
    server.stop()


def _tell_and_wait(address: str, unix_address: str) -> None:
    print(json.dumps({"tcp": address, "unix": unix_address}), flush=True)
    sys.stdin.read()


def main() -> None:
    """Run one of the servers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["echo", "experts", "doubling"])
    parser.add_argument("--unix", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs=3, metavar=("D", "F", "E"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.kind == "echo":
        serve_echo(options.unix)
        return
    serve = serve_experts if options.kind == "experts" else serve_doubling
    serve(options.unix, RandomExperts(*options.sizes), getattr(torch, options.dtype))


if __name__ == "__main__":
    main()
