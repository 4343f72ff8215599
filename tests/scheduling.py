"""Which worker of pytest-xdist runs which tests: whole files, and one running Herd at a time while there are others.

Two that start at once on two cores take each other's time: twice as long each, and more.
"""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

_ONE_APPLICATION = ("tests/e2e/demo/", "tests/faults/redundant/")
"""Folders whose files share a running Herd: a worker runs them all."""
_SERVE = ("tests/e2e/", "tests/faults/")
"""Where tests start one."""


class OneApplicationAtATime(LoadFileScheduling):
    """Gives workers files, or folders of an application; the longest first, as far as it can choose.

    Where a worker crashes, pytest-xdist 3.8 gives others also what that one had ended, and the test it crashed at; a
    worker that gets nothing but ended tests, or a single one, waits for more and is never told that there are none.
    """

    def remove_node(self, node: WorkerController) -> str | None:
        """Leave to others what a worker has not run; return the test it crashed at, None: it had run all."""
        units = self.assigned_work.pop(node).items()
        left = {scope: {test: False for test, has_run in unit.items() if not has_run} for scope, unit in units}
        tests = [(scope, test) for scope, unit in left.items() for test in unit]
        if not tests:
            return None
        scope, crashed = tests[0]
        del left[scope][crashed]
        self.workqueue.update({scope: unit for scope, unit in left.items() if unit})
        for other in self.nodes:
            self._reschedule(other)
        return crashed

    def schedule(self) -> None:
        """Give workers two units, or tell them that there are no more: one alone they begin and do not end."""
        super().schedule()
        for node in self.nodes:
            self._reschedule(node)

    def _split_scope(self, nodeid: str) -> str:
        return next((each for each in _ONE_APPLICATION if nodeid.startswith(each)), super()._split_scope(nodeid))

    def _assign_work_unit(self, node: WorkerController) -> None:
        is_served = any(self._serves(other) for other in self.nodes if other is not node)
        wanted = (scope for scope in self.workqueue if scope.startswith(_SERVE) is not is_served)
        if (scope := next(wanted, None)) is not None:
            self.workqueue.move_to_end(scope, last=False)
        super()._assign_work_unit(node)

    def _serves(self, node: WorkerController) -> bool:
        """Tell whether a worker has yet to end tests that start a Herd."""
        units = self.assigned_work[node].items()
        return any(scope.startswith(_SERVE) and not all(unit.values()) for scope, unit in units)
