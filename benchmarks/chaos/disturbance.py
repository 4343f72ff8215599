"""Does to a running application what a scenario says, while the load runs, and waits until everything is back."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from .application import Application
from .connections import served_hosts
from .load import Load, worker_host
from .outcome import FaultEvent
from .processes import Part
from .redundancy import Redundancy, RedundancyWatch
from .run_options import RunOptions, Say
from .scenarios import Injection, Scenario, Stage

_STORM_END_S = 180.0
_WATCH_S = 30.0
"""How long the load runs where there is no fault."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """What is disturbed."""

    application: Application
    """Serves."""
    load: Load
    """Runs."""
    began_s: float
    """When the load began, on the monotonic clock."""
    watch: RedundancyWatch
    """Looks at the application."""
    whole: Redundancy
    """What it saw when nothing was missing."""


class Disturbance:
    """Injects and lifts faults; `faults` tells of them.

    Args:
        scenario: what to do.
        options: how often.
        running: to whom.
        stage: where the scenario finds its targets.
        say: told what happens.
    """

    def __init__(self, scenario: Scenario, options: RunOptions, running: Running, stage: Stage, say: Say) -> None:
        self.faults: list[FaultEvent] = []
        self.own: set[int] | None = None
        """Streams that were in flight through a front door when it became a target, by `id`; None: none was one."""
        self._scenario = scenario
        self._options = options
        self._running = running
        self._stage = stage
        self._say = say
        self._draw: random.Random = stage.draw

    def run(self) -> None:
        """Do it; returns when everything is back and some calm has passed, or everything was waited for in vain."""
        if self._scenario.every_s is None:
            self._one_by_one()
        else:
            self._storm(*self._scenario.every_s)

    def _one_by_one(self) -> None:
        hold_s = self._scenario.hold_s if self._options.hold_s is None else self._options.hold_s
        for number in range(self._options.repeat):
            injection = self._scenario.plan(self._stage)
            if injection is None:
                self._say("nobody to do it to: watching only")
                time.sleep(min(self._options.seconds, _WATCH_S))
                return
            event = self._inject(injection)
            time.sleep(hold_s)
            injection.fault.lift()
            event.lifted_s = time.monotonic() - self._running.began_s
            gone = [injection.target.pid] if injection.target and injection.kills else []
            self._await(event, gone, self._options.recover_s)
            self._say(f"fault {number + 1} of {self._options.repeat}: {_describe(event)}")
            if not self._running.application.is_running:
                self._say(f"herd serve has ended:\n{self._running.application.output}")
                return
            time.sleep(self._options.calm_s)

    def _storm(self, least_s: float, most_s: float) -> None:
        ends_at = time.monotonic() + self._options.seconds
        gone: list[int] = []
        while time.monotonic() < ends_at and self._running.application.is_running:
            if (injection := self._scenario.plan(self._stage)) is not None:
                event = self._inject(injection)
                event.lifted_s = event.injected_s
                gone += [injection.target.pid] if injection.target else []
                left_s = max(ends_at - time.monotonic(), 0)
                self._say(f"fault {len(self.faults)}: {injection.label}; {left_s:.0f} s of storm left")
            time.sleep(self._draw.uniform(least_s, most_s))
        for event in self.faults[:-1]:
            event.is_overtaken = True
        if self.faults:
            self._await(self.faults[-1], gone, _STORM_END_S)
            self._say(f"after the storm: {_describe(self.faults[-1])}")
        time.sleep(self._options.calm_s)

    def _inject(self, injection: Injection) -> FaultEvent:
        target, port = injection.target, self._running.application.grpc_port
        is_front_door = target is not None and target.part is Part.FRONT_DOOR
        hosts = served_hosts(target.pid, port) if target is not None and is_front_door else set()
        now_s = time.monotonic()
        in_flight = [record for record in list(self._running.load.records) if record.ran_at(now_s)]
        if is_front_door:
            self.own = (self.own or set()) | {id(record) for record in in_flight if worker_host(record.worker) in hosts}
        event = FaultEvent(label=injection.label, injected_s=now_s - self._running.began_s, lifted_s=0.0)
        event.streams_in_flight = len(in_flight)
        self.faults.append(event)
        injection.fault.inject()
        return event

    def _await(self, event: FaultEvent, gone: list[int], timeout_s: float) -> None:
        """Wait until everything is back that is there when nothing is missing."""
        running = self._running
        back_at = running.watch.wait(running.whole, gone, timeout_s)
        event.recovered_s = None if back_at is None else back_at - running.began_s
        event.problem = "" if back_at is not None else running.watch.last_problem


def _describe(event: FaultEvent) -> str:
    if event.redundancy_s is None:
        return f"{event.label}: not everything came back: {event.problem}"
    return f"{event.label}: everything back after {event.redundancy_s:.1f} s"
