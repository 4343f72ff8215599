"""The scenarios by name: with which settings, what goes wrong, and what must not come of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .faults import Both, Fault, FullDisk, Kill, Slow, Stop
from .processes import Part, Process, processes_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What a scenario can reach."""

    pid: int
    """Of `herd serve`."""
    folder: Path
    """Where the application keeps its files."""
    draw: random.Random
    """Chooses targets, alike in every run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Injection:
    """A fault and whom it meets."""

    fault: Fault
    """To inject and to lift."""
    label: str
    """For people: "SIGKILL Experts-0 (4711)"."""
    target: Process | None = None
    """The process it is done to."""
    kills: bool = False
    """Whether the target dies of it."""


Plan = Callable[[Stage], Injection | None]
"""Makes the next injection; None: there is nobody to do it to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """One kind of trouble."""

    name: str
    """As on the command line."""
    summary: str
    """One sentence."""
    plan: Plan
    """What is done, again for every repetition."""
    settings: tuple[str, ...] = ()
    """For `herd serve --set`."""
    hold_s: float = 0.0
    """Seconds from injecting to lifting."""
    every_s: tuple[float, float] | None = None
    """Least and most seconds between two faults of a storm; None: the next one waits until everything is back."""
    disk_mb: int | None = None
    """Size of the disk for the application's files; None: it is not bounded."""


TWO_HOLDERS = ("experts.replicas_per_group=2",)
TWO_SHARDS = ("context.shards=2",)
TWO_ROUTERS = ("router.replicas=2",)


def _kill(part: Part) -> Plan:
    def plan(stage: Stage) -> Injection | None:
        target = _choose(stage, part)
        return target and Injection(fault=Kill(target.pid), label=_label("SIGKILL", target), target=target, kills=True)

    return plan


def _stop(part: Part) -> Plan:
    def plan(stage: Stage) -> Injection | None:
        target = _choose(stage, part)
        return target and Injection(fault=Stop(target.pid), label=_label("SIGSTOP", target), target=target)

    return plan


def _slow(part: Part) -> Plan:
    def plan(stage: Stage) -> Injection | None:
        target = _choose(stage, part)
        return target and Injection(fault=Slow(target.pid), label=_label("slow", target), target=target)

    return plan


def _fill_disk(stage: Stage) -> Injection:
    return Injection(fault=FullDisk(stage.folder), label="full disk")


def _fill_disk_and_kill(stage: Stage) -> Injection | None:
    target = _choose(stage, Part.EXPERT)
    return target and Injection(
        fault=Both(FullDisk(stage.folder), Kill(target.pid)),
        label=_label("full disk, SIGKILL", target),
        target=target,
        kills=True,
    )


def _kill_any(*parts: Part) -> Plan:
    def plan(stage: Stage) -> Injection | None:
        return _kill(stage.draw.choice(parts))(stage)

    return plan


def _nothing(_: Stage) -> None:
    return None


def _choose(stage: Stage, part: Part) -> Process | None:
    found = processes_of(stage.pid, part)
    return stage.draw.choice(found) if found else None


def _label(what: str, target: Process) -> str:
    return f"{what} {target.name} ({target.pid})"


_ONE = {
    Part.EXPERT: "an expert replica",
    Part.ROUTER: "a router replica",
    Part.CONTEXT: "a context shard",
    Part.FRONT_DOOR: "a front door",
    Part.DIRECTORY: "the directory",
    Part.CONTROLLER: "the Serve controller",
    Part.PROXY: "a Serve proxy, of which Herd has none",
}


def _three(part: Part, settings: tuple[str, ...], hold_s: float) -> list[Scenario]:
    """Return the scenarios that every part has: killed, hanging, slow."""
    name = part.label.replace(" ", "-")
    return [
        Scenario(name=f"{name}-kill", summary=f"SIGKILL {_ONE[part]}", plan=_kill(part), settings=settings),
        Scenario(
            name=f"{name}-stop",
            summary=f"SIGSTOP {_ONE[part]} for {hold_s:g} s: it hangs with its connections open",
            plan=_stop(part),
            hold_s=hold_s,
            settings=settings,
        ),
        Scenario(
            name=f"{name}-slow",
            summary=f"{_ONE[part]} gets a twentieth of its time for {hold_s:g} s",
            plan=_slow(part),
            hold_s=hold_s,
            settings=settings,
        ),
    ]


_EVERYTHING = (
    Scenario(name="none", summary="no fault: what the comparison finds by itself", plan=_nothing, settings=TWO_HOLDERS),
    *_three(Part.EXPERT, TWO_HOLDERS, 10),
    Scenario(
        name="expert-kill-only-holder",
        summary="SIGKILL the only holder of its experts: streams wait for its restart",
        plan=_kill(Part.EXPERT),
    ),
    *_three(Part.ROUTER, TWO_ROUTERS, 10),
    *_three(Part.CONTEXT, TWO_SHARDS, 10),
    *_three(Part.FRONT_DOOR, (), 10),
    *_three(Part.DIRECTORY, TWO_HOLDERS, 10),
    *_three(Part.CONTROLLER, TWO_HOLDERS, 10),
    *_three(Part.PROXY, TWO_HOLDERS, 10),
    Scenario(
        name="disk-full",
        summary="the disk with logs and sockets has no byte left for 10 s",
        plan=_fill_disk,
        settings=TWO_HOLDERS,
        hold_s=10,
        disk_mb=256,
    ),
    Scenario(
        name="disk-full-expert-kill",
        summary="the disk is full, and an expert replica dies and has to be replaced meanwhile",
        plan=_fill_disk_and_kill,
        settings=TWO_HOLDERS,
        hold_s=20,
        disk_mb=256,
    ),
    Scenario(
        name="storm",
        summary="every few seconds, SIGKILL an expert, a router, the directory or the controller",
        plan=_kill_any(Part.EXPERT, Part.EXPERT, Part.ROUTER, Part.DIRECTORY, Part.CONTROLLER),
        settings=(*TWO_HOLDERS, *TWO_ROUTERS),
        every_s=(2, 6),
    ),
    Scenario(
        name="storm-experts",
        summary="every few seconds, SIGKILL an expert replica",
        plan=_kill_any(Part.EXPERT),
        settings=TWO_HOLDERS,
        every_s=(2, 6),
    ),
)
SCENARIOS = {scenario.name: scenario for scenario in _EVERYTHING}
