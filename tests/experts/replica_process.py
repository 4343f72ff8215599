"""`python -m experts`, started by a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from protos.expert.v1 import expert_pb2
from tests.experts.replica_client import WAIT_S, StreamClient

ROOT = Path(__file__).resolve().parent.parent.parent


class ReplicaProcess:
    """`python -m experts`, started; `ready` is what it told about itself."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "experts", "--parent-pid", str(os.getpid()), *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()

    @property
    def ready(self) -> dict[str, Any]:
        return json.loads(self.line)

    def connect(self) -> StreamClient:
        hello = expert_pb2.Hello(router_id="test", model_fingerprint=self.ready["model_fingerprint"])
        client = StreamClient(self.ready["address"], hello)
        client.next()
        return client

    def end(self) -> tuple[int, str]:
        """Wait for the exit code and what was written to stderr, less the progress a slow machine gets to see."""
        _, said = self.process.communicate(timeout=WAIT_S)
        lines = [line for line in said.splitlines(keepends=True) if not line.startswith("loading: ")]
        return self.process.returncode, "".join(lines)
