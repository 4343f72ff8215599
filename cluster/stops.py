"""Finds stop strings in text that arrives in pieces, reading every character once."""

from __future__ import annotations

from collections.abc import Sequence

from protos.errors import InvalidRequest


class StopMatcher:
    """Automaton over several stop strings: its state is the longest end of the text that begins one of them.

    Args:
        stops: strings to look for; none is empty.

    Raises:
        InvalidRequest: a stop string is empty.

    Source: Aho and Corasick, "Efficient string matching", CACM 18(6), 1975.
    Cost: memory and time to build grow with the total length of the stops; one character costs amortised O(1).
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise InvalidRequest("expected stop strings of at least one character, found an empty one; leave it out")
        # Per state: where a character leads, how long its text is, the longest stop that ends there (0: none), and
        # the state of the longest shorter end of its text.
        self._next: list[dict[str, int]] = [{}]
        self._length = [0]
        self._matched = [0]
        self._shorter = [0]
        for stop in stops:
            self._add(stop)
        self._link()
        self._state = 0

    @property
    def pending(self) -> int:
        """How many of the last characters may yet turn out to begin a stop string."""
        return self._length[self._state]

    def feed(self, character: str) -> int:
        """Take one more character and return the length of the longest stop string it completes, or 0."""
        self._state = self._step(self._state, character)
        return self._matched[self._state]

    def _step(self, state: int, character: str) -> int:
        while state and character not in self._next[state]:
            state = self._shorter[state]
        return self._next[state].get(character, 0)

    def _add(self, stop: str) -> None:
        state = 0
        for character in stop:
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._length.append(self._length[state] + 1)
                self._matched.append(0)
                self._shorter.append(0)
            state = self._next[state][character]
        self._matched[state] = len(stop)

    def _link(self) -> None:
        """Find every state's shorter end, nearest to the start first: it needs those of shorter texts."""
        queue = list(self._next[0].values())
        for state in queue:
            for character, child in self._next[state].items():
                self._shorter[child] = self._step(self._shorter[state], character)
                self._matched[child] = self._matched[child] or self._matched[self._shorter[child]]
                queue.append(child)
