"""Opens a transport to a checkpoint's experts: in this process, or in expert processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from experts.weights import ExpertWeights
from models.checkpoint import Checkpoint
from router.placement import ExpertHolder, Placement
from router.transport.base import Transport
from router.transport.grpc import GrpcTransport
from router.transport.local import LocalTransport

START_S = 60


@contextmanager
def open_transport(checkpoint: Checkpoint, reach: str) -> Iterator[Transport]:
    """Yield a transport: reach "local", "every" (a replica per expert), or a number of replicas.

    A dense model gets one that fails the test if it is ever used.
    """
    num_experts = checkpoint.config.num_experts
    if not checkpoint.config.is_moe:
        yield LocalTransport(_no_experts)
        return
    if reach == "local":
        weights = ExpertWeights.load(checkpoint, range(num_experts), torch.float32)
        yield LocalTransport(weights.run)
        return
    num_replicas = num_experts if reach == "every" else int(reach)
    # Every other expert, so that neighbours in a plan are apart.
    groups = [tuple(range(first, num_experts, num_replicas)) for first in range(num_replicas)]
    with expert_processes(checkpoint, groups) as holders:
        transport = GrpcTransport(router_id="parity", fingerprint=checkpoint.fingerprint)
        transport.update(Placement(version=1, holders=tuple(holders)))
        assert transport.wait_ready(range(num_experts), START_S)
        yield transport
        transport.close()


def _no_experts(*args: object) -> torch.Tensor:
    raise AssertionError("a dense model dispatched")


@contextmanager
def expert_processes(checkpoint: Checkpoint, groups: list[tuple[int, ...]]) -> Iterator[list[ExpertHolder]]:
    """Run one expert process per group and yield where they are; SIGTERM ends them and they exit with 0."""
    with ExitStack() as stack:
        processes = [stack.enter_context(_expert_process(checkpoint, group)) for group in groups]
        yield [_holder(process, group) for process, group in zip(processes, groups, strict=True)]
        for process in processes:
            process.terminate()
        assert [process.wait(START_S) for process in processes] == [0] * len(processes)


@contextmanager
def _expert_process(checkpoint: Checkpoint, experts: tuple[int, ...]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "experts", "--checkpoint", str(checkpoint.folder), "--dtype", "float32"]
    command += ["--experts", ",".join(map(str, experts)), "--die-with-parent"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        # Reading the ready line below has no deadline of its own.
        watchdog = threading.Timer(START_S, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            if process.poll() is None:
                process.kill()


def _holder(process: subprocess.Popen[str], experts: tuple[int, ...]) -> ExpertHolder:
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline() or "{}")
    assert ready, f"expert process ended with {process.poll()}"
    return ExpertHolder(replica_id=f"replica-{process.pid}", address=ready["address"], expert_ids=experts)
