"""The ids of a stream's last dispatches, so that one which a network doubles is computed once."""

from __future__ import annotations

from collections import deque

_REMEMBERED = 1024


class SeenIds:
    """Remembers the newest ids of a stream. Belongs to one thread."""

    def __init__(self) -> None:
        self._ids: set[int] = set()
        self._order: deque[int] = deque()

    def knows(self, dispatch_id: int) -> bool:
        """Tell whether an id came lately, and remember it."""
        if dispatch_id in self._ids:
            return True
        self._ids.add(dispatch_id)
        self._order.append(dispatch_id)
        if len(self._order) > _REMEMBERED:
            self._ids.discard(self._order.popleft())
        return False
