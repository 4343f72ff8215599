"""Which bytes of a stream's shared segment belong to which dispatch.

A slot has two users. The step has it from taking it until it has read what it wants or wants it no more; the replica
has it from when the dispatch is sent until it has answered, for so long may it write:

    free ──take──▶ step ──lend──▶ both ──answered──▶ step ──let go──▶ free
                                   └──let go──▶ replica ──answered──▶ free

So a dispatch that nobody waits for keeps its slot until its late answer, and no newer one is ever written over. A
replica that never answers keeps it until the stream breaks; then the whole segment is given up, and the next stream has
another.
"""

from __future__ import annotations

import threading

from torch import Tensor

from protos.segment import HEADER_BYTES, Segment

# A page: two slots share no cache line, and few sizes differ.
_GRAIN_BYTES = 4096


class Slot:
    """A range of a segment, taken for one dispatch.

    Args:
        slots: where it was taken.
        offset: its first byte.
        num_bytes: how many belong to it.
    """

    def __init__(self, slots: Slots, offset: int, num_bytes: int) -> None:
        self.slots = slots
        self.offset = offset
        self.num_bytes = num_bytes
        self.is_wanted = True
        self.is_lent = False

    def write(self, hidden_ND: Tensor) -> None:
        """Put a dispatch's tokens here, for the replica to see. Cost: copies them once; waits until a GPU has."""
        segment = self.slots.segment
        segment.tensor(self.offset, hidden_ND.dtype, hidden_ND.shape).copy_(hidden_ND)
        segment.settle()

    def lend(self) -> None:
        """Take note that the replica may write to it."""
        self.is_lent = True

    def answered(self) -> None:
        """Take note that the replica will write no more."""
        self.slots.settle(self, is_lent=False)

    def let_go(self) -> None:
        """Take note that nobody here will read it any more. Idempotent."""
        self.slots.settle(self, is_wanted=False)


class Slots:
    """Gives out ranges of one segment, lowest first: what is used again is already in memory, and in caches.

    Any thread may use it.

    Args:
        segment: agreed on with a replica.
    """

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self._lock = threading.Lock()
        self._free = [(HEADER_BYTES, segment.num_bytes)]
        """(first byte, byte after the last) of each free range, ascending, with a gap between any two."""

    @property
    def free_bytes(self) -> int:
        """Return how much is free."""
        return sum(stop - start for start, stop in self._free)

    def take(self, num_bytes: int) -> Slot | None:
        """Return a slot of at least that size, None where there is no room: the tensor then travels otherwise."""
        size = -(-num_bytes // _GRAIN_BYTES) * _GRAIN_BYTES
        with self._lock:
            for index, (start, stop) in enumerate(self._free):
                if stop - start >= size > 0:
                    self._free[index : index + 1] = [(start + size, stop)] if stop - start > size else []
                    return Slot(self, start, size)
        return None

    def settle(self, slot: Slot, *, is_lent: bool | None = None, is_wanted: bool | None = None) -> None:
        """Note who still uses a slot, and free it after the last."""
        with self._lock:
            was_used = slot.is_lent or slot.is_wanted
            slot.is_lent = slot.is_lent if is_lent is None else is_lent
            slot.is_wanted = slot.is_wanted if is_wanted is None else is_wanted
            if was_used and not (slot.is_lent or slot.is_wanted):
                self._give_back(slot.offset, slot.offset + slot.num_bytes)

    def _give_back(self, start: int, stop: int) -> None:
        """Free a range, joined with its neighbours."""
        joined = []
        for range_ in self._free:
            if range_[1] == start:
                start = range_[0]
            elif range_[0] == stop:
                stop = range_[1]
            else:
                joined.append(range_)
        self._free = sorted([*joined, (start, stop)])
