"""`python -m experts`: one replica as a bare process, without Ray, for tests, benchmarks and debugging.

Prints one line of JSON once it serves: where, and what it holds. SIGTERM or SIGINT drains it; it exits 0 if every
accepted dispatch was answered, 1 if not, 2 if it could not start.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from models.cpu.environment import CPU_ENVIRONMENT

os.environ.update(CPU_ENVIRONMENT | os.environ)  # before torch, which reads it once

import torch

from experts.peer_source import PeerSource
from experts.server import ExpertServer
from experts.startup import StartupClock
from experts.weights import ExpertWeights
from models.checkpoint import KeptCodes, as_stored, open_checkpoint
from protos.errors import BadConfig, ServingError
from protos.tls_options import add_tls_options, tls_identity

_LOG = logging.getLogger(__name__)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_QUIET_S = 2.0
_PROGRESS_EVERY_S = 1.0
_PARENT_POLL_S = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a replica until told to stop; return the exit code."""
    try:
        options = _parser().parse_args(arguments)
        return _serve(options)
    except ServingError as error:
        print(f"experts: {error.message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def parse_experts(text: str, num_experts: int) -> list[int]:
    """Return the expert ids that a text like "0-3,7" or "all" names.

    Raises:
        BadConfig: it names none.
    """
    if text == "all":
        return list(range(num_experts))
    ids: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise BadConfig(f'--experts: expected ids such as "0-3,7" or "all", found "{text}"')
        ids += range(int(first), int(last or first) + 1)
    return ids


def _serve(options: argparse.Namespace) -> int:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    clock = StartupClock()
    clock.imported()
    identity = tls_identity(options)
    checkpoint = open_checkpoint(options.checkpoint)
    clock.opened()
    rss_before = _resident_bytes()
    dtype, quantize = _DTYPES[options.dtype], options.quantize
    files = as_stored(checkpoint, quantize)
    is_kept = isinstance(files, KeptCodes) and files.keeps_experts
    peer = None
    if options.from_peer and not is_kept:
        peer = PeerSource(options.from_peer, files, dtype, quantize, identity)
    held = ExpertWeights.load(
        peer or files,
        parse_experts(options.experts, checkpoint.config.num_experts),
        dtype,
        _LoadingProgress(),
        device=_device(options.device),
        quantize=quantize,
    )
    clock.loaded(held.reading_share, peer.fetched_bytes if peer else 0)

    def on_first_dispatch() -> None:
        clock.dispatched()
        _LOG.info("started: %s", clock.phases.described())

    server = ExpertServer(
        held,
        host=options.host,
        port=options.port,
        unix_path=options.unix,
        on_first_dispatch=on_first_dispatch,
        identity=identity,
    )
    server.start()
    clock.serving()
    clock.ready()
    stop = _stop_on_signals()
    ready = {
        "address": server.address,
        "unix_address": server.unix_address,
        "pid": os.getpid(),
        "replica_id": server.replica.replica_id,
        "model_fingerprint": held.fingerprint,
        "expert_ids": held.expert_ids,
        "weight_bytes": held.weight_bytes,
        "loaded_bytes": held.loaded_bytes,
        "fetched_bytes": peer.fetched_bytes if peer else 0,
        "rss_before_bytes": rss_before,
        "rss_bytes": _resident_bytes(),
        "startup": dataclasses.asdict(clock.phases),
    }
    print(json.dumps(ready), flush=True)
    _wait(stop, options.parent_pid)
    return 0 if server.stop(options.drain_seconds) else 1


def _device(name: str) -> torch.device:
    """Return the device of a name; of several GPUs, the first that the process sees.

    Raises:
        BadConfig: it is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise BadConfig(
            "--device: expected a GPU that torch can use, found none; take --device cpu, or see that the driver and a "
            "torch built with CUDA are there and CUDA_VISIBLE_DEVICES names a card"
        )
    return torch.device(name)


def _stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set; a second signal ends the process at once."""
    stop = threading.Event()

    def on_signal(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return stop


def _wait(stop: threading.Event, parent_pid: int | None) -> None:
    """Wait for the event, or for the parent's death."""
    if parent_pid is None:
        stop.wait()
        return
    while os.getppid() == parent_pid and not stop.wait(_PARENT_POLL_S):
        pass


def _resident_bytes() -> int:
    """Return the process's resident memory; where there is no /proc, its peak."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class _LoadingProgress:
    """Tells on stderr how far loading is, once it takes longer than one waits without asking."""

    def __init__(self) -> None:
        self._tell_at_s = time.monotonic() + _QUIET_S

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        if (now_s := time.monotonic()) >= self._tell_at_s:
            print(f"loading: {done_bytes / 1e9:.2f} of {total_bytes / 1e9:.2f} GB", file=sys.stderr, flush=True)
            self._tell_at_s = now_s + _PROGRESS_EVERY_S


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadConfig(f"{message}: see python -m experts --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m experts", description="Serve some experts of a model over gRPC.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the model's folder")
    parser.add_argument("--experts", default="all", help='ids to hold, such as "0-3,7" (all)')
    parser.add_argument("--dtype", choices=list(_DTYPES), default="float32", help="of weights and tokens (float32)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to hold and run them (cpu)")
    parser.add_argument(
        "--quantize",
        choices=["int8", "int4", "fp8"],
        help="round weights to 8 or 4 bits; fp8 needs a Hopper GPU (not at all)",
    )
    parser.add_argument(
        "--from-peer", metavar="HOST:PORT", help="replica to copy weights from (the checkpoint's files)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=0, help="TCP port; 0 chooses a free one (0)")
    parser.add_argument("--unix", type=Path, help="path of a Unix socket to listen on as well")
    parser.add_argument("--threads", type=int, help="threads that compute one expert (torch's default)")
    parser.add_argument("--drain-seconds", type=float, default=30, help="longest time to answer what was accepted (30)")
    parser.add_argument("--parent-pid", type=int, help="stop when this process is no longer the parent")
    add_tls_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
