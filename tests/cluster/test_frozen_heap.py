"""What Python's garbage collector looks at in a process that has started."""

from __future__ import annotations

import gc

from cluster.frozen_heap import freeze_heap


def test_it_looks_at_nothing_that_was_there_before():
    there_before = [[] for _ in range(100_000)]
    try:
        freeze_heap()
        new = [[]]
        seen = set(map(id, gc.get_objects()))
        assert id(new[0]) in seen
        assert not seen & set(map(id, there_before))
    finally:
        gc.unfreeze()
