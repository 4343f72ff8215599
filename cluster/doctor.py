"""What `herd doctor` looks at: everything that could keep a start from succeeding, each with advice."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from importlib import import_module

from cluster.byte_text import format_bytes
from cluster.gpus import Gpus, usable_gpus
from cluster.imports import check_imports
from cluster.machine import check_port, read_machine
from cluster.versions import OLDEST, check_version
from models.cpu.library import why_unavailable
from protos.cuda_driver import DriverError, load_driver
from protos.errors import ServingError

_SHARED_MEMORY_BYTES = 150 * 1024**2
_TEMP_BYTES = 500 * 1024**2


class Verdict(Enum):
    """How much a finding matters."""

    OK = "OK"
    WARN = "WARN"
    """It starts, but worse than it could."""
    FAIL = "FAIL"
    """It cannot start."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question."""

    subject: str
    verdict: Verdict
    text: str
    """What was found, and what to do where that is not well."""


def examine(model: str, http_port: int, grpc_port: int) -> list[Finding]:
    """Look at this machine.

    Args:
        model: folder or preset whose memory to check.
        http_port: that `herd serve` will use.
        grpc_port: that `herd serve` will use.
    """
    return [
        *(_ask(name, lambda name=name: check_version(name)) for name in ("python", *OLDEST)),  # type: ignore[misc]
        _ask("imports", _imports),
        _ask("memory", lambda: _memory(model)),
        gpu_finding(usable_gpus(), _why_no_triton),
        _shared_memory(),
        _temporary_folder(),
        _cpu_kernels(),
        examine_gpus(),
        _ask("HTTP port", lambda: _port(http_port, "HTTP", "--http-port")),
        _ask("gRPC port", lambda: _port(grpc_port, "gRPC", "--grpc-port")),
    ]


def _ask(subject: str, question: Callable[[], str]) -> Finding:
    """Return OK with what a question finds, or FAIL with what it raises."""
    try:
        return Finding(subject, Verdict.OK, question())
    except ServingError as error:
        return Finding(subject, Verdict.FAIL, error.message)


def _imports() -> str:
    check_imports()
    return "every package of Herd is found in this project"


def _memory(model: str) -> str:
    from cluster.config_source import load_config
    from cluster.launch.start_checks import plan_start

    plan = plan_start(load_config(assignments=[f"model.path={model}"]))
    found = format_bytes(read_machine().free_bytes)
    gpus = f" and {plan.num_gpus} GPUs" if plan.num_gpus else ""
    return f"{found} free, {plan.model_name} takes about {format_bytes(plan.needed_bytes)}{gpus}"


def gpu_finding(gpus: Gpus, why_no_triton: Callable[[], str]) -> Finding:
    """Return what there is to say of GPUs: that there are none is well.

    Args:
        gpus: that there are.
        why_no_triton: tells why kernels for GPUs cannot be made; empty: they can. Asked where there is a GPU.
    """
    subject = "GPUs"
    if not gpus.cards:
        if gpus.problem:
            return Finding(subject, Verdict.WARN, f"everything computes on CPUs: {gpus.problem}")
        return Finding(subject, Verdict.OK, "none: everything computes on CPUs")
    from models.gpu.capability import LEAST_CAPABILITY

    kinds = Counter((card.name, card.capability) for card in gpus.cards)
    names = ", ".join(f"{count} x {name} (compute capability {_dotted(each)})" for (name, each), count in kinds.items())
    free = format_bytes(min(card.free_bytes for card in gpus.cards))
    found = f"{names}, at least {free} free on each"
    if min(card.capability for card in gpus.cards) < LEAST_CAPABILITY:
        return Finding(
            subject,
            Verdict.WARN,
            f"expected compute capability {_dotted(LEAST_CAPABILITY)} or later, which the kernels are for, found "
            f"{found}: set router.device=cuda to use them all the same, mostly with torch's own operators",
        )
    if problem := why_no_triton():
        return Finding(subject, Verdict.WARN, f"expected triton, found {problem}: install it; {found}")
    return Finding(subject, Verdict.OK, f"{found}; the kernels are for them, and triton makes them")


def _why_no_triton() -> str:
    try:
        import_module("triton")
    except ImportError as error:
        return f"it missing ({error})"
    return ""


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def _shared_memory() -> Finding:
    free = shutil.disk_usage("/dev/shm").free
    if free < _SHARED_MEMORY_BYTES:
        return Finding(
            "shared memory",
            Verdict.WARN,
            f"expected {format_bytes(_SHARED_MEMORY_BYTES)} free in /dev/shm, found {format_bytes(free)}: Ray falls "
            "back to slow files; in a container, give --shm-size=1g",
        )
    return Finding("shared memory", Verdict.OK, f"{format_bytes(free)} free in /dev/shm")


def _temporary_folder() -> Finding:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < _TEMP_BYTES:
        return Finding(
            "temporary files",
            Verdict.WARN,
            f"expected {format_bytes(_TEMP_BYTES)} free in {folder}, found {format_bytes(free)}: logs may fill it",
        )
    return Finding("temporary files", Verdict.OK, f"{format_bytes(free)} free in {folder}")


def _cpu_kernels() -> Finding:
    why = why_unavailable()
    if why is None:
        return Finding("CPU kernels", Verdict.OK, "compiled for this processor: bfloat16 and int8 run on them")
    return Finding("CPU kernels", Verdict.WARN, f"bfloat16 and int8 on a CPU take up to twice as long without: {why}")


def examine_gpus() -> Finding:
    """Tell whether routers and experts can exchange tensors without leaving the cards: the lane cuda-ipc."""
    subject, otherwise = "GPU memory", "processes of this host exchange tensors through its memory"
    try:
        driver = load_driver()
    except DriverError as error:
        return Finding(subject, Verdict.OK, f"none to share, {error}: {otherwise}")
    try:
        cards = range(driver.num_cards)
        for card in cards:
            driver.check_export(card)
        apart = [f"{a} and {b}" for a, b in itertools.permutations(cards, 2) if not driver.can_reach(a, b)]
    except DriverError as error:
        return Finding(subject, Verdict.WARN, f"expected memory that processes can share, but {error}: {otherwise}")
    if apart:
        pairs = ", ".join(apart)
        text = f"expected GPUs that can read each other's memory, found that {pairs} cannot: between them, {otherwise}"
        return Finding(subject, Verdict.WARN, text)
    return Finding(subject, Verdict.OK, f"routers and experts of this host exchange tensors on its {len(cards)} GPU(s)")


def _port(port: int, what: str, setting: str) -> str:
    check_port(port, what, setting)
    return f"{port} is free"
