"""Runs one scenario: an application, its fault-free streams, then the same streams with faults among them.

each request once -> load -> warm-up -> fault -> lifted -> everything back -> calm -> fault ... -> the end
"""

from __future__ import annotations

import random
import subprocess
import time
from contextlib import ExitStack

from .application import Application
from .connections import num_descriptors
from .disturbance import Disturbance, Running
from .load import Load
from .measure import Recorded, measure
from .outcome import Outcome
from .processes import find_processes
from .redundancy import RedundancyWatch
from .requests import make_requests
from .run_options import RunOptions, Say
from .scenarios import Scenario, Stage
from .scratch import Scratch

_SETTLE_S = 30.0
_MORE_DESCRIPTORS = 32
"""A process may open so many more descriptors while faults come and go: a replica's successor takes new sockets."""


class Run:
    """One scenario, once.

    Args:
        scenario: which.
        options: how.
        say: told what happens.
    """

    def __init__(self, scenario: Scenario, options: RunOptions, say: Say) -> None:
        self._scenario = scenario
        self._options = options
        self._settings = (*scenario.settings, *options.settings)
        self._say = say

    def run(self) -> Outcome:
        """Run it; whatever happens, no process and no file stays."""
        with ExitStack() as stack:
            scratch = stack.enter_context(Scratch(self._scenario.disk_mb))
            self._say(f"{self._scenario.name}: starting herd serve {' '.join(self._settings)}")
            application = stack.enter_context(Application(self._settings, folder=scratch.folder))
            outcome = self._with_application(application, scratch)
            outcome.leaks += _grown(outcome.descriptors) + _end(application, scratch)
        return outcome

    def _with_application(self, application: Application, scratch: Scratch) -> Outcome:
        options = self._options
        watch = RedundancyWatch(application.pid, application.grpc_port)
        whole = watch.steady(_SETTLE_S)
        load = Load(application.grpc_port, make_requests(options.requests, options.max_tokens), options.streams)
        self._say(f"asking each of {options.requests} requests once, without faults")
        reference = load.run_each_once()
        load = Load(
            application.grpc_port,
            make_requests(options.requests, options.max_tokens),
            options.streams,
            period_s=options.period_s,
        )
        descriptors = {each: num_descriptors(each.pid) for each in find_processes(application.pid)}
        stage = Stage(pid=application.pid, folder=scratch.folder, draw=random.Random(options.seed))
        running = Running(application=application, load=load, began_s=time.monotonic(), watch=watch, whole=whole)
        disturbance = Disturbance(self._scenario, options, running, stage, self._say)
        load.start()
        try:
            time.sleep(options.warm_up_s + 3 * options.ramp_s)
            disturbance.run()
            ended_s = time.monotonic()
        finally:
            self._say("stopping the load")
            load.stop()
        outcome = measure(
            self._scenario.name,
            {"herd": " ".join(self._settings) or "the defaults", **options.describe()},
            load=Recorded(
                records=load.records,
                reference=reference,
                began_s=running.began_s,
                ended_s=ended_s,
                ramp_s=1.0 + options.ramp_s,
            ),
            faults=disturbance.faults,
            own=disturbance.own,
        )
        outcome.descriptors = {
            f"{process.name} {process.pid}": (count, now)
            for process, count in descriptors.items()
            if (now := num_descriptors(process.pid))
        }
        return outcome


def _grown(descriptors: dict[str, tuple[int, int]]) -> list[str]:
    """Name the processes that have many more descriptors open than before."""
    return [
        f"{name}: {before} descriptors, then {after}"
        for name, (before, after) in descriptors.items()
        if after > before + _MORE_DESCRIPTORS
    ]


def _end(application: Application, scratch: Scratch) -> list[str]:
    """End the application as Ctrl-C does; return what is wrong with that and what is left."""
    if not application.is_running:
        return ["herd serve ended by itself"]
    try:
        code = application.end()
    except subprocess.TimeoutExpired as error:
        return [f"herd serve did not end: {error}"]
    leaks = [] if code == 0 else [f"herd serve ended with {code}"]
    leaks += [f"process {line}" for line in application.leftovers()]
    return leaks + [f"file {name}" for name in scratch.leftovers() if name != "filler"]
