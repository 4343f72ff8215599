"""Herd as a worker: the router's engine in this process, its experts here (`local`) or in processes of their own.

`split` starts `python -m experts` as often as asked and reaches them over gRPC on Unix sockets: the system as it is
served, less its front door. Run with PYTHONPATH naming the checkout to measure.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from models.cpu.environment import CPU_ENVIRONMENT

os.environ.update(CPU_ENVIRONMENT | os.environ)  # before torch, which reads it once
# This checkout's folder `benchmarks`, which PYTHONPATH does not name: the checkout to measure may be another.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import worker
from expert_processes import open_experts

from experts.weights import ExpertWeights
from models.checkpoint import Checkpoint, open_checkpoint
from models.llama4.decoder import load_decoder
from router.engine import Engine
from router.limits import EngineLimits
from router.request import Ended, GenerationRequest, SamplingParams, TokenChosen
from router.transport.base import Transport
from router.transport.local import LocalTransport

GENERATE_S = 900.0


class HerdEngine:
    """A router's engine and a way to its experts.

    Args:
        options: the command line's.
        stack: closes what was opened.
    """

    def __init__(self, options: argparse.Namespace, stack: ExitStack) -> None:
        torch.set_num_threads(options.router_threads)
        self._num_requests = 0
        self._names = {os.getpid(): "router" if options.experts == "split" else "router with experts"}
        quantize = {} if options.quantize == "none" else {"quantize": options.quantize}
        dtype = getattr(torch, options.dtype)
        checkpoint = open_checkpoint(options.checkpoint)
        if options.experts == "split":
            transport = self._open_split(checkpoint, options, stack)
        else:
            held = ExpertWeights.load(checkpoint, range(checkpoint.config.num_experts), dtype, **quantize)
            transport = LocalTransport(held.run)
            stack.callback(transport.close)
        limits: dict[str, Any] = {
            "context_length": options.context,
            "kv_bytes": int(options.kv_gib * 2**30),
            "slots": options.slots,
            "step_tokens": options.step_tokens,
            # A repeated prompt must cost Herd what it costs the others.
            "prefix_cache": False,
        }
        decoder = load_decoder(checkpoint, dtype=dtype, **quantize)
        self.engine = Engine(decoder, transport, EngineLimits(**limits))
        self.engine.start()
        stack.callback(self.engine.stop)
        self.settings: dict[str, Any] = limits | {
            "experts": options.experts,
            "dtype": options.dtype,
            "quantize": options.quantize,
            "router_threads": options.router_threads,
        }
        if options.experts == "split":
            self.settings |= {"replicas": options.replicas, "expert_threads": options.expert_threads}
        self.settings |= {
            name: value for name, value in os.environ.items() if name.startswith(("OMP_", "GOMP_", "THP_"))
        }

    def _open_split(self, checkpoint: Checkpoint, options: argparse.Namespace, stack: ExitStack) -> Transport:
        experts = range(checkpoint.config.num_experts)
        opened = stack.enter_context(
            open_experts(
                checkpoint,
                [experts[first :: options.replicas] for first in range(options.replicas)],
                dtype=options.dtype,
                threads=options.expert_threads,
                quantize=None if options.quantize == "none" else options.quantize,
            )
        )
        self._names |= {pid: f"experts {number}" for number, pid in enumerate(opened.pids)}
        return opened.transport

    def generate(self, prompts: list[list[int]], max_tokens: int, emit: Callable[[int, int], None]) -> None:
        """See worker.Engine."""
        finished = threading.Semaphore(0)
        errors: list[BaseException] = []

        def receiver(number: int) -> Callable[[Any], None]:
            def receive(event: Any) -> None:
                if isinstance(event, TokenChosen):
                    emit(number, event.token_id)
                elif isinstance(event, Ended):
                    if event.error is not None:
                        errors.append(event.error)
                    finished.release()

            return receive

        for number, prompt in enumerate(prompts):
            self._num_requests += 1
            request = GenerationRequest(
                request_id=f"request-{self._num_requests}",
                prompt_ids=tuple(prompt),
                max_tokens=max_tokens,
                sampling=SamplingParams(temperature=0.0),
            )
            self.engine.submit(request, receiver(number))
        for _ in prompts:
            if not finished.acquire(timeout=GENERATE_S):
                raise TimeoutError(f"expected {len(prompts)} sequences to end within {GENERATE_S:.0f} s")
        if errors:
            raise errors[0]

    def process_names(self) -> dict[int, str]:
        """See worker.Engine."""
        return self._names


def main() -> None:
    """Answer on stdin and stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--experts", choices=["local", "split"], required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--quantize", choices=["none", "int8", "int4"], default="none")
    parser.add_argument("--router-threads", type=int, default=2)
    parser.add_argument("--expert-threads", type=int, default=1)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--step-tokens", type=int, default=2048)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--kv-gib", type=float, default=2)
    options = parser.parse_args()
    with ExitStack() as stack:
        worker.run(lambda: HerdEngine(options, stack), ["torch", "grpcio"])


if __name__ == "__main__":
    main()
