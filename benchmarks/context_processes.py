"""`python -m context`, started by a benchmark, and the way there."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from models.checkpoint import Checkpoint
from router.context_shards.shards import ContextShards
from router.context_shards.stream import ShardHolder

ROUTER = "benchmark"
"""Whom the segments belong to."""
_ROOT = Path(__file__).resolve().parent.parent
_START_S = 60.0
_END_S = 30.0


class ContextProcess:
    """A context shard in a process of its own; `close` ends it.

    Args:
        model: the checkpoint's folder.
        kv_bytes: memory for keys and values.
        arguments: further ones of `python -m context`.

    Raises:
        RuntimeError: it did not start; it has said why on stderr.
    """

    def __init__(self, model: Path, kv_bytes: int, *arguments: str) -> None:
        command = [sys.executable, "-m", "context", "--checkpoint", str(model), "--kv-bytes", str(kv_bytes)]
        self._process = subprocess.Popen(
            [*command, "--parent-pid", str(os.getpid()), *arguments],
            cwd=_ROOT,
            env=os.environ | {"PYTHONPATH": str(_ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"expected a context shard to start, found it ended with {self._process.wait()}")
        ready = json.loads(line)
        self.holder = ShardHolder(ready["shard_id"], ready["address"])
        self.token_bytes: int = ready["token_bytes"]

    @property
    def pid(self) -> int:
        """Return the process's id."""
        return self._process.pid

    @property
    def resident_bytes(self) -> int:
        """Return the process's memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * resource.getpagesize()

    def kill(self) -> None:
        """Kill it at once."""
        self._process.kill()

    def close(self) -> None:
        """End it. Idempotent."""
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def open_shards(
    checkpoint: Checkpoint, number: int, kv_bytes: int, *arguments: str
) -> Iterator[tuple[ContextShards, list[ContextProcess]]]:
    """Start context shards, segments being attention chunks, and end them after the block.

    Args:
        checkpoint: the model's.
        number: of shards.
        kv_bytes: memory of each for keys and values.
        arguments: further ones of `python -m context`.

    Raises:
        RuntimeError: one did not start, or does not answer.
    """
    chunk = checkpoint.config.attention_chunk
    assert chunk is not None, "context shards are for models with chunk-local layers"
    with ExitStack() as stack:
        processes = [
            stack.enter_context(closing(ContextProcess(checkpoint.folder, kv_bytes, *arguments))) for _ in range(number)
        ]
        shards = ContextShards(router_id=ROUTER, fingerprint=checkpoint.fingerprint, segment_tokens=chunk)
        stack.enter_context(closing(shards))
        shards.update(process.holder for process in processes)
        if not shards.wait_ready(number, _START_S):
            raise RuntimeError(f"expected every shard to answer within {_START_S:g} s, found some that did not")
        yield shards, processes
