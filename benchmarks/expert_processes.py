"""Expert replicas as bare processes, and the transport that reaches them: the experts of `herd serve`, without Ray.

Imports torch: a script that computes sets `models.cpu.environment` first.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import experts
from models.checkpoint import Checkpoint
from router.placement import ExpertHolder, Placement
from router.transport.grpc import GrpcTransport

READY_S = 300.0
STOP_S = 30.0
# `python -m` looks in its working directory first: here, the checkout that this process runs, wherever it was started.
_CODE = Path(experts.__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertProcesses:
    """Processes that serve every expert of a model."""

    transport: GrpcTransport
    """Reaches them; closed with them."""
    pids: tuple[int, ...]
    """Their process ids, in the order of the groups."""


@contextmanager
def open_experts(
    checkpoint: Checkpoint,
    groups: Sequence[Sequence[int]],
    *,
    dtype: str,
    threads: int,
    quantize: str | None = None,
    device: str = "cpu",
) -> Iterator[ExpertProcesses]:
    """Run a process per group of experts until left; they end with this process at the latest.

    Args:
        checkpoint: the model's.
        groups: logical experts of each process, ascending; together all of them.
        dtype: of weights and tokens, for example "float32".
        threads: that compute one expert, in each process.
        quantize: "int8" or "int4"; None: not at all.
        device: "cuda" holds and runs them on the first GPU that the processes see.

    Raises:
        RuntimeError: a process ended before it served.
        TimeoutError: not every expert could be reached.
    """
    arguments = ["--checkpoint", str(checkpoint.folder.resolve()), "--dtype", dtype, "--threads", str(threads)]
    arguments += ["--device", device] + ([] if quantize is None else ["--quantize", quantize])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="herd-experts-")))
        # All load at once; each says where it is when it serves.
        processes = [
            stack.enter_context(_process([*arguments, "--experts", ",".join(map(str, group))], folder / str(number)))
            for number, group in enumerate(groups)
        ]
        holders = tuple(_read_holder(process) for process in processes)
        transport = GrpcTransport(router_id="benchmark", fingerprint=checkpoint.fingerprint)
        stack.callback(transport.close)
        transport.update(Placement(version=1, holders=holders))
        if not transport.wait_ready(range(checkpoint.config.num_experts), READY_S):
            raise TimeoutError(f"expected the expert processes to be reached within {READY_S:.0f} s")
        yield ExpertProcesses(transport=transport, pids=tuple(process.pid for process in processes))


@contextmanager
def _process(arguments: list[str], unix_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `python -m experts`; SIGTERM ends it."""
    command = [sys.executable, "-m", "experts", *arguments]
    command += ["--unix", str(unix_path), "--parent-pid", str(os.getpid())]
    with subprocess.Popen(command, cwd=_CODE, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _read_holder(process: subprocess.Popen[str]) -> ExpertHolder:
    """Return what a process says of itself, once it does."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("an expert process ended before it was ready: what it said is above")
    ready = json.loads(line)
    return ExpertHolder(
        replica_id=ready["replica_id"],
        address=ready["address"],
        unix_address=ready["unix_address"],
        host=socket.gethostname(),
        expert_ids=tuple(ready["expert_ids"]),
    )
