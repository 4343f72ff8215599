"""Which of the sequences that generate get a token in the next step, where tenants are held to even shares."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from itertools import count

from router.sequence import Sequence

STAY_S = 0.1
"""Seconds that a tenant counts after its last sequence: who asks one thing after the other would find a step under way,
each time, that serves all the others have."""


class EvenShare:
    """Keeps a tenant's sequences from making others' tokens late.

    A step takes the longer the more sequences it serves, so whoever runs a hundred makes everybody wait for a hundred.
    A tenant who is held to an even share has no more sequences in a step than the tenant with the fewest; they take
    turns. It costs throughput: a step for few sequences takes nearly as long as one for some more. So only those are
    held to it whose requests say so, and only while others run, or did a moment ago. Those who wait for a slot beside
    what they run count for more: held tenants would keep their slots the longer.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wanted: dict[str, tuple[float, int]] = {}
        self._turns = count(1)

    def choose(
        self, generating: list[Sequence], prefilling: SequenceOf[Sequence], waiting: SequenceOf[Sequence]
    ) -> list[Sequence]:
        """Return the sequences that get a token in the next step, in the order given.

        Args:
            generating: those that could.
            prefilling: those whose prompts are being computed: their tenants wait for the step as well.
            waiting: those without a slot.
        """
        held = [each for each in generating if each.request.even_share]
        if not held:
            return generating
        share = self._fewest([*generating, *prefilling], waiting)
        for sequence in held:
            if not sequence.last_turn:
                sequence.last_turn = next(self._turns)  # a new one comes after those that are there
        taken = Counter(each.request.tenant for each in generating if not each.request.even_share)
        left_out = set()
        for sequence in sorted(held, key=lambda each: (each.request.priority, each.last_turn)):
            if taken[sequence.request.tenant] >= share:
                left_out.add(sequence)
                continue
            taken[sequence.request.tenant] += 1
            sequence.last_turn = next(self._turns)
        return [sequence for sequence in generating if sequence not in left_out]

    def _fewest(self, running: Iterable[Sequence], waiting: Iterable[Sequence]) -> int:
        """Return the fewest sequences that a tenant runs or wants to run besides, of those that run any or just did."""
        now = self._clock()
        counts = Counter(each.request.tenant for each in running)
        counts.update(each.request.tenant for each in waiting if each.request.tenant in counts)
        self._wanted |= {tenant: (now, num) for tenant, num in counts.items()}
        self._wanted = {tenant: (at, num) for tenant, (at, num) in self._wanted.items() if now - at <= STAY_S}
        return min(num for _, num in self._wanted.values())
