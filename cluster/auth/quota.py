"""What is left of a quota: buckets that fill up again with time, and the caller they belong to.

Quotas hold for one front door: with two of them, a key has twice as much. They never end a stream that runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from protos.errors import InvalidRequest, PermissionDenied, RateLimited

_MINUTE_S = 60.0
_STREAM_RETRY_MS = 1000
"""What a caller with too many streams is told to wait. A guess: when one ends is not known."""


class Bucket:
    """Room for so much a minute, at most a minute's worth saved up.

    Args:
        per_minute: what fills it in a minute, and all it holds; None: no limit.
        now: monotonic second.
    """

    def __init__(self, per_minute: int | None, now: float) -> None:
        self._per_minute = per_minute
        self._level = float(per_minute or 0)
        self._at = now

    def resize(self, per_minute: int | None, now: float) -> None:
        """Change what it holds; what was taken stays taken."""
        if per_minute == self._per_minute:
            return
        self._fill(now)
        taken = self._per_minute - self._level if self._per_minute else 0.0
        self._per_minute = per_minute
        self._level = (per_minute or 0) - taken

    def wait_s(self, amount: int, now: float) -> float:
        """Return the seconds until so much, or all it can hold if that is less, can be taken; 0: now."""
        if self._per_minute is None:
            return 0.0
        self._fill(now)
        lacking = min(amount, self._per_minute) - self._level
        # Less than a thousandth is how floats add up.
        return max(lacking, 0.0) * _MINUTE_S / self._per_minute if lacking > 1e-3 else 0.0

    def take(self, amount: int, now: float) -> None:
        """Take so much, though it may not be there: then it is owed."""
        if self._per_minute is not None:
            self._fill(now)
            self._level -= amount

    def _fill(self, now: float) -> None:
        if self._per_minute is not None:
            gained = (now - self._at) * self._per_minute / _MINUTE_S
            self._level = min(self._level + gained, self._per_minute)
        self._at = now


class Caller:
    """Whoever has a key, and what is left of their quotas at this front door. Belongs to one event loop.

    Args:
        name: of the key.
        is_admin: may see the operator's surfaces.
        requests_per_minute: None: no limit.
        tokens_per_minute: None: no limit.
        streams: sequences at once; None: no limit.
        best_priority: lowest number that requests may ask for; None: any.
        even_share: whether routers hold their sequences to an even share of steps.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        *,
        is_admin: bool = False,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        streams: int | None = None,
        best_priority: int | None = None,
        even_share: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.is_admin = is_admin
        self.even_share = even_share
        self._clock = clock
        self._requests = Bucket(requests_per_minute, clock())
        self._tokens = Bucket(tokens_per_minute, clock())
        self._streams = streams
        self._best_priority = best_priority
        self._num_streams = 0

    def allow(
        self,
        *,
        is_admin: bool,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        streams: int | None,
        best_priority: int | None,
        even_share: bool,
    ) -> None:
        """Change what this caller may do; what was used stays used."""
        self.is_admin = is_admin
        self.even_share = even_share
        self._requests.resize(requests_per_minute, self._clock())
        self._tokens.resize(tokens_per_minute, self._clock())
        self._streams = streams
        self._best_priority = best_priority

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request, from entering the context to leaving it; it stands for one sequence until `sequences`.

        Raises:
            RateLimited: this caller has made as many as they may, or has as many at once.
        """
        self._check_streams(1)
        _check(self.name, self._requests, 1, "requests", self._clock())
        self._requests.take(1, self._clock())
        self._num_streams += 1
        try:
            yield
        finally:
            self._num_streams -= 1

    @contextmanager
    def sequences(self, num_sequences: int, priority: int) -> Iterator[None]:
        """Count the other sequences of a request that counts as one already, in the context.

        Args:
            num_sequences: prompts times choices.
            priority: what the request asks for.

        Raises:
            PermissionDenied: the priority is better than this caller may have.
            InvalidRequest: this caller may never have as many at once.
            RateLimited: this caller has others.
        """
        if self._best_priority is not None and priority < self._best_priority:
            raise PermissionDenied(
                f"priority: expected at least {self._best_priority} with key {self.name!r}, found {priority}; raise "
                "it, or leave it out",
                metadata={"param": "priority"},
            )
        if self._streams is not None and num_sequences > self._streams:
            raise InvalidRequest(
                f"n: expected at most {self._streams} prompts times n with key {self.name!r}, found {num_sequences}; "
                "send them in several requests",
                metadata={"param": "n"},
            )
        others = num_sequences - 1
        self._check_streams(others)
        self._num_streams += others
        try:
            yield
        finally:
            self._num_streams -= others

    def _check_streams(self, num_more: int) -> None:
        if self._streams is not None and self._num_streams + num_more > self._streams:
            raise _refused(self.name, f"{self._streams} sequences at once", f"{num_more} more", _STREAM_RETRY_MS)

    def take_prompt(self, num_tokens: int) -> None:
        """Count a prompt's tokens before they are computed.

        Raises:
            RateLimited: this caller has used as many tokens as they may.
        """
        _check(self.name, self._tokens, num_tokens, "tokens", self._clock())
        self._tokens.take(num_tokens, self._clock())

    def take_answer(self, num_tokens: int) -> None:
        """Count tokens of an answer. How many there will be is known only afterwards: later requests pay for them."""
        self._tokens.take(num_tokens, self._clock())


ANYBODY = Caller("anybody", is_admin=True)
"""The caller where no keys are asked for."""


def _check(name: str, bucket: Bucket, amount: int, unit: str, now: float) -> None:
    wait_s = bucket.wait_s(amount, now)
    if wait_s:
        raise _refused(name, f"its {unit} a minute", f"{amount} more", math.ceil(wait_s * 1000))


def _refused(name: str, expected: str, found: str, retry_after_ms: int) -> RateLimited:
    return RateLimited(
        f"expected key {name!r} to stay within {expected}, found {found} asked for; retry in {retry_after_ms} ms, or "
        "ask whoever runs this server for more",
        retry_after_ms=retry_after_ms,
    )
