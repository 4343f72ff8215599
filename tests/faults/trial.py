"""Streams under way while a test does something to the application, and what became of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from benchmarks.chaos.application import Application
from benchmarks.chaos.comparison import Differences, compare
from benchmarks.chaos.load import Load
from benchmarks.chaos.processes import Part, Process, processes_of
from benchmarks.chaos.record import StreamRecord
from benchmarks.chaos.redundancy import Redundancy, RedundancyWatch

WAIT_S = 90.0
_POLL_S = 0.02


class Trial:
    """Context manager: the load runs inside, and every worker has had tokens when it begins.

    Args:
        application: serves.
        load: not started.
        whole: what is there as long as nothing is missing.
        reference: every request's stream without faults.
    """

    def __init__(self, application: Application, load: Load, whole: Redundancy, reference: list[StreamRecord]) -> None:
        self._application = application
        self._load = load
        self._whole = whole
        self._reference = reference
        self._watch = RedundancyWatch(application.pid, application.grpc_port)
        self._is_loaded = False

    def one_of(self, part: Part) -> Process:
        """Return a process of a part, any one."""
        return random.choice(processes_of(self._application.pid, part))

    def wait_for_tokens(self, num_tokens: int) -> None:
        """Return when so many more tokens have come."""
        goal = self._num_tokens() + num_tokens
        wait_until(lambda: self._num_tokens() >= goal)

    def wait_whole(self, *gone: int) -> None:
        """Return when everything is there again, without the processes that should be gone."""
        assert self._watch.wait(self._whole, gone, WAIT_S) is not None, self._watch.last_problem

    def finish(self) -> Differences:
        """End the load; return how its streams differ from those without faults."""
        self._load.stop()
        self._is_loaded = False
        return compare(self._load.records, self._reference)

    def _num_tokens(self) -> int:
        return sum(len(record.token_ids) for record in list(self._load.records))

    def __enter__(self) -> Trial:
        self._load.start()
        self._is_loaded = True
        self.wait_for_tokens(100)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_loaded:
            self._load.stop()


def wait_until(holds: Callable[[], bool]) -> None:
    """Look again and again until something holds."""
    give_up_at = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < give_up_at, f"it did not come to that within {WAIT_S:g} s"
        time.sleep(_POLL_S)
