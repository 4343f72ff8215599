"""`python -m context`: one context shard as a bare process, without Ray, for tests, benchmarks and debugging.

Prints one line of JSON once it serves: where, and what it can hold. SIGTERM or SIGINT ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from models.cpu.environment import CPU_ENVIRONMENT

os.environ.update(CPU_ENVIRONMENT | os.environ)  # before torch, which reads it once

import torch

from context.segments import SegmentStore
from context.server import ContextServer
from context.shard import Shard
from models.checkpoint import open_checkpoint
from protos.errors import ServingError
from protos.tls_options import add_tls_options, tls_identity

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PARENT_POLL_S = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a shard until told to stop; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _serve(options)
    except ServingError as error:
        print(f"context: {error.message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _serve(options: argparse.Namespace) -> int:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    identity = tls_identity(options)
    checkpoint = open_checkpoint(options.checkpoint)
    dtype = _DTYPES[options.dtype]
    store = SegmentStore(
        checkpoint.config,
        kv_dtype=options.kv_dtype or options.dtype,
        kv_bytes=options.kv_bytes,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    shard = Shard(
        store,
        fingerprint=checkpoint.fingerprint,
        dtype=dtype,
        lease_s=options.lease_seconds,
        takes_synthetic=options.synthetic,
    )
    server = ContextServer(shard, host=options.host, port=options.port, identity=identity)
    server.start()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    ready = {
        "address": server.address,
        "pid": os.getpid(),
        "shard_id": shard.shard_id,
        "model_fingerprint": shard.fingerprint,
        "total_tokens": store.total_tokens,
        "token_bytes": store.layout.global_token_bytes,
    }
    print(json.dumps(ready), flush=True)
    while not stop.wait(_PARENT_POLL_S):
        if options.parent_pid is not None and os.getppid() != options.parent_pid:
            break
    server.stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m context", description="Hold keys and values of global layers for routers, over gRPC."
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="the model's folder; only its configuration is read"
    )
    parser.add_argument("--kv-bytes", type=int, required=True, help="memory for keys and values")
    parser.add_argument("--dtype", choices=list(_DTYPES), default="float32", help="of queries and outputs (float32)")
    parser.add_argument(
        "--kv-dtype", choices=[*_DTYPES, "int8", "fp8"], help="what keys and values are stored in (as --dtype)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=0, help="TCP port; 0 chooses a free one (0)")
    parser.add_argument("--threads", type=int, help="threads that compute (torch's default)")
    parser.add_argument(
        "--lease-seconds", type=float, default=30, help="how long segments outlive their router's stream (30)"
    )
    parser.add_argument("--synthetic", action="store_true", help="let anybody fill segments with random numbers")
    parser.add_argument("--parent-pid", type=int, help="stop when this process is no longer the parent")
    add_tls_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
