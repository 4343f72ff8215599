"""The GPUs of this machine, as their driver tells of them: asked itself, torch would take memory on each."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

_TOOL = "nvidia-smi"
_FIELDS = "index,uuid,name,memory.total,memory.free,compute_cap"
_TIMEOUT_S = 20.0
"""A driver that nobody has used for a while takes seconds to answer."""
_MIB = 1024**2
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One card."""

    name: str
    """As its driver calls it."""
    memory_bytes: int
    """All of its memory."""
    free_bytes: int
    """What nobody uses now."""
    capability: tuple[int, int]
    """CUDA's compute capability; (9, 0) is Hopper."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """What there is to compute on besides processors."""

    cards: tuple[Gpu, ...] = ()
    """Those that this process may use."""
    problem: str = ""
    """Why there may be more than were found; empty: there are not."""


def usable_gpus() -> Gpus:
    """Return the GPUs there are, if torch was built to compute on them.

    Cost: see `find_gpus`; imports torch where there is any.
    """
    found = find_gpus()
    if not found.cards:
        return found
    import torch

    if torch.version.cuda is None:
        return Gpus(problem=f"{len(found.cards)} GPUs are there, but torch was built without CUDA: install one with it")
    return found


def find_gpus() -> Gpus:
    """Return the NVIDIA GPUs that this process may use: those that CUDA_VISIBLE_DEVICES names, as Ray counts them too.

    Cost: starts the driver's own program, where there is one; tenths of a second, and seconds when the driver sleeps.
    """
    program = shutil.which(_TOOL)
    if program is None:
        return Gpus()
    try:
        told = subprocess.run(
            [program, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
        )
        return Gpus(tuple(_visible(told.stdout, os.environ.get(_VISIBLE))))
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout or "").strip().splitlines()
        return Gpus(problem=f"{_TOOL} failed: {said[-1] if said else error.returncode}")
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        return Gpus(problem=f"{_TOOL} does not tell: {error}")


def _visible(table: str, named: str | None) -> Iterator[Gpu]:
    """Yield the cards of a table that are named by number or id; None: all.

    Raises:
        ValueError: the table is not what was asked for.
    """
    rows = [[field.strip() for field in line.split(",")] for line in table.splitlines() if line.strip()]
    names = None if named is None else [name.strip() for name in named.split(",")]
    for index, uuid, name, total_mib, free_mib, capability in rows:
        if names is not None and index not in names and not any(each and uuid.startswith(each) for each in names):
            continue
        major, _, minor = capability.partition(".")
        yield Gpu(
            name=name,
            memory_bytes=int(total_mib) * _MIB,
            free_bytes=int(free_mib) * _MIB,
            capability=(int(major), int(minor)),
        )
