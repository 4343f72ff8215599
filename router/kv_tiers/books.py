"""Which page is in which slots of a bounded space: the least recently used pages make room for new ones."""

from __future__ import annotations

from collections import OrderedDict

from router.paging.refill import Block

Slots = tuple[int, ...]
"""Slots of one page, in order."""


class SlotBooks:
    """The slots of one tier. Pure integers; not for several threads.

    Args:
        num_slots: slots are numbered from 0.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._slots_of: OrderedDict[Block, Slots] = OrderedDict()  # least recently used first
        self._free: list[int] = []
        self._num_touched = 0  # slots from here on were never used: memory and disk are taken as needed
        self._num_lent = 0

    @property
    def num_used(self) -> int:
        """Return the slots that hold something."""
        return self._num_touched - len(self._free)

    def __contains__(self, block: Block) -> bool:
        """Return whether a block is here."""
        return block in self._slots_of

    def __len__(self) -> int:
        """Return how many blocks are here."""
        return len(self._slots_of)

    def find(self, block: Block) -> Slots | None:
        """Return where a block is, and count that as a use."""
        if (slots := self._slots_of.get(block)) is not None:
            self._slots_of.move_to_end(block)
        return slots

    def oldest(self) -> tuple[Block, Slots] | None:
        """Return the block that makes room next; None: there is none."""
        return next(iter(self._slots_of.items()), None)

    def blocks(self) -> list[tuple[Block, Slots]]:
        """Return every block and where it is, least recently used first."""
        return list(self._slots_of.items())

    def has_room(self, count: int) -> bool:
        """Return whether so many slots are free."""
        return len(self._free) + self.num_slots - self._num_touched >= count

    def add(self, block: Block, count: int) -> Slots:
        """Give free slots to a block that is not here."""
        assert block not in self._slots_of, "the block is here already"
        assert self.has_room(count), f"expected {count} free slots: remove what is oldest first"
        slots = tuple(self._free.pop() if self._free else self._touch() for _ in range(count))
        self._slots_of[block] = slots
        return slots

    def place(self, block: Block, slots: Slots) -> None:
        """Note where a block is that was found there at the start, before anything is added."""
        self._slots_of[block] = slots

    def close_gaps(self) -> None:
        """Free the slots in which nothing was placed."""
        used = {slot for slots in self._slots_of.values() for slot in slots}
        self._num_touched = max(used, default=-1) + 1
        self._free = [slot for slot in range(self._num_touched) if slot not in used]

    def remove(self, block: Block) -> None:
        """Forget a block and free its slots."""
        self._free += self._slots_of.pop(block)

    def lend(self, block: Block) -> Slots:
        """Forget a block, but keep its slots as they are until `give_back`."""
        slots = self._slots_of.pop(block)
        self._num_lent += len(slots)
        return slots

    def give_back(self, slots: Slots) -> None:
        """Free slots that were lent."""
        self._num_lent -= len(slots)
        self._free += slots

    def check(self) -> None:
        """Verify that every slot is in exactly one state.

        Raises:
            AssertionError: says what is wrong. This is our bug.
        """
        used = [slot for slots in self._slots_of.values() for slot in slots]
        states = used + self._free
        assert len(set(states)) == len(states), "a slot is in two states"
        assert all(0 <= slot < self._num_touched <= self.num_slots for slot in states), "a slot does not exist"
        assert len(states) + self._num_lent == self._num_touched, "a slot is lost"

    def _touch(self) -> int:
        self._num_touched += 1
        return self._num_touched - 1
