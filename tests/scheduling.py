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
    """Gives workers files, or folders of an application; the longest first, as far as it can choose."""

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
