"""Opens a transport to a checkpoint's experts, in this process or in processes of their own; runs context shards."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from context.__main__ import main as run_context
from experts.__main__ import main as run_experts
from experts.weights import ExpertWeights
from models.checkpoint import Checkpoint
from router.context_shards.stream import ShardHolder
from router.placement import ExpertHolder, Placement
from router.transport.base import Transport
from router.transport.grpc import GrpcTransport
from router.transport.local import LocalTransport

START_S = 60
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["context.__main__", "experts.__main__"])


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
    arguments = ["--checkpoint", str(checkpoint.folder), "--dtype", "float32", "--threads", "1"]
    with ExitStack() as stack:
        replicas = [
            stack.enter_context(bare_process(run_experts, [*arguments, "--experts", ",".join(map(str, group))]))
            for group in groups
        ]
        yield [_holder(output, group) for (_, output), group in zip(replicas, groups, strict=True)]
        _terminate([process for process, _ in replicas])


@contextmanager
def context_processes(checkpoint: Checkpoint, num_shards: int, kv_bytes: int) -> Iterator[list[ShardHolder]]:
    """Run context shard processes and yield where they are; SIGTERM ends them and they exit with 0."""
    arguments = ["--checkpoint", str(checkpoint.folder), "--kv-bytes", str(kv_bytes), "--threads", "1"]
    with ExitStack() as stack:
        shards = [stack.enter_context(bare_process(run_context, arguments)) for _ in range(num_shards)]
        told = [ready_line(output) for _, output in shards]
        yield [ShardHolder(ready["shard_id"], ready["address"]) for ready in told]
        _terminate([process for process, _ in shards])


def _terminate(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(START_S)
    assert [process.exitcode for process in processes] == [0] * len(processes)


@contextmanager
def bare_process(main: Callable[[list[str]], int], arguments: list[str]) -> Iterator[tuple[BaseProcess, Connection]]:
    """Run `python -m experts` or `context`, forked from a process that has imported torch: seconds sooner."""
    output, child_output = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_run, args=(main, arguments, child_output))
    process.start()
    child_output.close()
    try:
        yield process, output
    finally:
        if process.is_alive():
            process.kill()
        process.join(START_S)


def _run(main: Callable[[list[str]], int], arguments: list[str], output: Connection) -> None:
    os.dup2(output.fileno(), sys.stdout.fileno())
    sys.exit(main([*arguments, "--parent-pid", str(os.getppid())]))


def ready_line(output: Connection) -> dict[str, Any]:
    """Return what a process says once it serves."""
    assert output.poll(START_S), "a process said nothing"
    ready: dict[str, Any] = json.loads(os.read(output.fileno(), 65536) or "{}")
    assert ready, "a process ended before it was ready"
    return ready


def _holder(output: Connection, experts: tuple[int, ...]) -> ExpertHolder:
    ready = ready_line(output)
    return ExpertHolder(replica_id=ready["replica_id"], address=ready["address"], expert_ids=experts)
