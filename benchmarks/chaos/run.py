"""Runs one scenario: an application, its fault-free streams, then the same streams with faults among them.

each request once -> load -> warm-up -> fault -> lifted -> everything back -> calm -> fault ... -> the end
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from .application import Application
from .connections import num_descriptors, served_hosts
from .load import Load, worker_host
from .measure import Recorded, measure
from .outcome import FaultEvent, Outcome
from .processes import Part, find_processes
from .redundancy import Redundancy, RedundancyWatch
from .requests import make_requests
from .scenarios import Injection, Scenario, Stage
from .scratch import Scratch

_SETTLE_S = 30.0
_STORM_END_S = 180.0
_MORE_DESCRIPTORS = 32
"""A process may open so many more descriptors while faults come and go: a replica's successor takes new sockets."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How a scenario is run."""

    streams: int = 16
    """At once."""
    requests: int = 48
    """Different ones."""
    max_tokens: int = 96
    """Of the longest."""
    repeat: int = 1
    """Faults one after the other; a storm is ruled by `seconds`."""
    seconds: float = 300.0
    """How long a storm rages, and the load of a run without faults lasts."""
    warm_up_s: float = 5.0
    """Load before the first fault."""
    calm_s: float = 5.0
    """Load after everything is back."""
    recover_s: float = 120.0
    """Most seconds that everything may take to come back."""
    seed: int = 1
    """Chooses targets and times."""
    hold_s: float | None = None
    """Seconds from injecting to lifting; None: as the scenario says."""
    settings: tuple[str, ...] = ()
    """Further ones for `herd serve --set`."""

    def describe(self) -> dict[str, str]:
        """Return what of it belongs to a result."""
        return {
            "streams": str(self.streams),
            "requests": f"{self.requests}, of {self.max_tokens} tokens at most",
            "hold": "as the scenario says" if self.hold_s is None else f"{self.hold_s:g} s",
        }


class Run:
    """One scenario, once.

    Args:
        scenario: which.
        options: how.
        say: told what happens, for people.
    """

    def __init__(self, scenario: Scenario, options: RunOptions, say: Say) -> None:
        self._scenario = scenario
        self._options = options
        self._say = say
        self._draw = random.Random(options.seed)
        self._faults: list[FaultEvent] = []
        self._own: set[int] = set()
        """Streams that were in flight through a front door that became a target, by `id`."""
        self._aimed_at_front_door = False

    def run(self) -> Outcome:
        """Run it; whatever happens, no process and no file stays."""
        settings = (*self._scenario.settings, *self._options.settings)
        with ExitStack() as stack:
            scratch = stack.enter_context(Scratch(self._scenario.disk_mb))
            self._say(f"{self._scenario.name}: starting herd serve {' '.join(settings)}")
            application = stack.enter_context(Application(settings, folder=scratch.folder))
            outcome = self._with_application(application, scratch)
            outcome.leaks += self._end(application, scratch)
        return outcome

    def _with_application(self, application: Application, scratch: Scratch) -> Outcome:
        options = self._options
        watch = RedundancyWatch(application.pid, application.grpc_port)
        before = watch.steady(_SETTLE_S)
        load = Load(application.grpc_port, make_requests(options.requests, options.max_tokens), options.streams)
        self._say(f"asking each of {options.requests} requests once, without faults")
        reference = load.run_each_once()
        descriptors = {each.pid: num_descriptors(each.pid) for each in find_processes(application.pid)}
        began_s = time.monotonic()
        load.start()
        try:
            time.sleep(options.warm_up_s)
            stage = Stage(pid=application.pid, folder=scratch.folder, draw=self._draw)
            if self._scenario.every_s is None:
                self._one_by_one(stage, application, load, watch, before, began_s)
            else:
                self._storm(stage, application, load, watch, before, began_s)
            ended_s = time.monotonic()
        finally:
            self._say("stopping the load")
            load.stop()
        outcome = measure(
            self._scenario.name,
            {"herd": " ".join((*self._scenario.settings, *options.settings)) or "the defaults", **options.describe()},
            load=Recorded(records=load.records, reference=reference, began_s=began_s, ended_s=ended_s),
            faults=self._faults,
            own=self._own if self._aimed_at_front_door else None,
        )
        outcome.leaks += _grown(descriptors)
        return outcome

    def _one_by_one(
        self,
        stage: Stage,
        application: Application,
        load: Load,
        watch: RedundancyWatch,
        before: Redundancy,
        began_s: float,
    ) -> None:
        for number in range(self._options.repeat):
            injection = self._scenario.plan(stage)
            if injection is None:
                self._say("nobody to do it to: watching only")
                time.sleep(min(self._options.seconds, self._options.calm_s * 2))
                return
            event = self._inject(injection, application, load, began_s)
            time.sleep(self._scenario.hold_s if self._options.hold_s is None else self._options.hold_s)
            injection.fault.lift()
            event.lifted_s = time.monotonic() - began_s
            gone = [injection.target.pid] if injection.target and injection.kills else []
            self._await(event, watch, before, gone, self._options.recover_s, began_s)
            self._say(f"fault {number + 1} of {self._options.repeat}: {_describe(event)}")
            if event.recovered_s is None and not application.is_running:
                self._say(f"herd serve has ended:\n{application.output}")
                return
            time.sleep(self._options.calm_s)

    def _storm(
        self,
        stage: Stage,
        application: Application,
        load: Load,
        watch: RedundancyWatch,
        before: Redundancy,
        began_s: float,
    ) -> None:
        assert self._scenario.every_s is not None
        ends_at = time.monotonic() + self._options.seconds
        gone: list[int] = []
        while time.monotonic() < ends_at and application.is_running:
            if (injection := self._scenario.plan(stage)) is not None:
                event = self._inject(injection, application, load, began_s)
                event.lifted_s = event.injected_s
                gone += [injection.target.pid] if injection.target else []
                left_s = ends_at - time.monotonic()
                self._say(f"fault {len(self._faults)}: {injection.label}; {max(left_s, 0):.0f} s of storm left")
            time.sleep(self._draw.uniform(*self._scenario.every_s))
        if self._faults:
            # Only the last one can be said to be over when everything is back.
            self._await(self._faults[-1], watch, before, gone, _STORM_END_S, began_s)
            for event in self._faults[:-1]:
                event.recovered_s = self._faults[-1].recovered_s
            self._say(f"after the storm: {_describe(self._faults[-1])}")
        time.sleep(self._options.calm_s)

    def _inject(self, injection: Injection, application: Application, load: Load, began_s: float) -> FaultEvent:
        target = injection.target
        hosts: set[str] = set()
        if target is not None and target.part is Part.FRONT_DOOR:
            self._aimed_at_front_door = True
            hosts = served_hosts(target.pid, application.grpc_port)
        now_s = time.monotonic()
        in_flight = [record for record in list(load.records) if record.ran_at(now_s)]
        self._own.update(id(record) for record in in_flight if worker_host(record.worker) in hosts)
        event = FaultEvent(label=injection.label, injected_s=now_s - began_s, lifted_s=0.0)
        event.streams_in_flight = len(in_flight)
        self._faults.append(event)
        injection.fault.inject()
        return event

    def _await(
        self,
        event: FaultEvent,
        watch: RedundancyWatch,
        before: Redundancy,
        gone: list[int],
        timeout_s: float,
        began_s: float,
    ) -> None:
        back_at = watch.wait(before, gone, timeout_s)
        event.recovered_s = None if back_at is None else back_at - began_s
        event.problem = "" if back_at is not None else watch.last_problem

    def _end(self, application: Application, scratch: Scratch) -> list[str]:
        """End the application as Ctrl-C does; return what is wrong with that and what is left."""
        if not application.is_running:
            return ["herd serve ended by itself"]
        try:
            code = application.end()
        except TimeoutError as error:
            return [f"herd serve did not end: {error}"]
        leaks = [] if code == 0 else [f"herd serve ended with {code}"]
        leaks += [f"process {line}" for line in application.leftovers()]
        return leaks + [f"file {name}" for name in scratch.leftovers() if name != "filler"]


def _grown(before: dict[int, int]) -> list[str]:
    """Name the processes that have many more descriptors open than before."""
    now = {pid: num_descriptors(pid) for pid in before}
    return [
        f"process {pid}: {count} descriptors before, {now[pid]} after"
        for pid, count in before.items()
        if now[pid] > count + _MORE_DESCRIPTORS
    ]


def _describe(event: FaultEvent) -> str:
    if event.redundancy_s is None:
        return f"{event.label}: not everything came back: {event.problem}"
    return f"{event.label}: everything back after {event.redundancy_s:.1f} s"
