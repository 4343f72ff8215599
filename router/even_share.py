"""Which of the sequences that generate get a token in the next step, where tenants are held to even shares."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from itertools import count

from router.sequence import Sequence

STAY_S = 0.5
"""Seconds that a tenant's share is left to it after its last sequence: who asks one thing after the other would find a
step under way, each time, that serves all the others have."""


class EvenShare:
    """Keeps a tenant with many sequences from slowing down one with few.

    A step takes the longer the more sequences it serves, so whoever runs a hundred makes everybody wait for a hundred.
    A tenant who is held to an even share has no more sequences in a step than the tenant with the fewest; they take
    turns. It costs throughput: a step for few sequences takes nearly as long as one for some more. So only those are
    held to it whose requests say so, and only while somebody else's are there, or were a moment ago.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._present: dict[str, tuple[float, int]] = {}
        self._turns = count(1)

    def choose(self, generating: list[Sequence], prefilling: SequenceOf[Sequence]) -> list[Sequence]:
        """Return the sequences that get a token in the next step, in the order given.

        Args:
            generating: those that could.
            prefilling: those whose prompts are being computed: their tenants wait for the step as well.
        """
        if not any(each.request.even_share for each in generating):
            return generating
        counts = _by_tenant(generating)
        counts.update(_by_tenant(each for each in prefilling if each.request.tenant not in counts))
        share = self._fewest(counts)
        if share == max(counts.values()):
            return generating
        taken: Counter[str] = Counter()
        left_out = set()
        for sequence in sorted(generating, key=lambda each: each.last_turn):
            request = sequence.request
            if request.even_share and taken[request.tenant] == share:
                left_out.add(sequence)
                continue
            taken[request.tenant] += 1
            sequence.last_turn = next(self._turns)
        return [sequence for sequence in generating if sequence not in left_out]

    def _fewest(self, counts: Counter[str]) -> int:
        """Return the fewest sequences that a tenant has, or had a moment ago."""
        now = self._clock()
        self._present |= {tenant: (now, num) for tenant, num in counts.items()}
        self._present = {tenant: (at, num) for tenant, (at, num) in self._present.items() if now - at <= STAY_S}
        return min(num for _, num in self._present.values())


def _by_tenant(sequences: Iterable[Sequence]) -> Counter[str]:
    return Counter(each.request.tenant for each in sequences)
