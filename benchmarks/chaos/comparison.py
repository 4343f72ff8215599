"""A stream against the same request's stream of a fault-free run: what was lost, doubled or changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from .record import StreamRecord

LOGPROB_TOLERANCE = 1e-3
"""Batches of other sizes add up in another order; that moves a logprob by less than this."""


@dataclass(kw_only=True, slots=True)
class Differences:
    """What differs from the fault-free run, summed over streams."""

    streams: int = 0
    """Streams that ended, however."""
    failed: int = 0
    """Streams that ended with an error, or not at all."""
    lost: int = 0
    """Tokens of the fault-free run that are missing; those a failed stream did not live to send count too."""
    duplicated: int = 0
    """Tokens beside those of the fault-free run."""
    changed: int = 0
    """Tokens in the place of others."""
    changed_logprobs: int = 0
    """Logprobs off by more than LOGPROB_TOLERANCE, in streams whose tokens are all right."""
    wrong_ends: int = 0
    """Complete streams whose finish reason or usage differs."""
    errors: dict[str, int] = field(default_factory=dict)
    """How often each kind of error came."""
    examples: list[str] = field(default_factory=list)
    """The first few differences, for people."""

    @property
    def is_clean(self) -> bool:
        """Tell whether there is none."""
        wrong = self.failed + self.lost + self.duplicated + self.changed + self.changed_logprobs + self.wrong_ends
        return wrong == 0

    @property
    def only_ended_early(self) -> bool:
        """Tell whether whatever came was right: streams may have failed before their end."""
        return self.duplicated + self.changed + self.changed_logprobs + self.wrong_ends == 0

    def describe(self) -> str:
        """Return one line."""
        return (
            f"{self.streams} streams: {self.failed} failed, tokens {self.lost} lost, {self.duplicated} doubled, "
            f"{self.changed} changed; {self.changed_logprobs} logprobs and {self.wrong_ends} ends differ"
            + "".join(f"; {count} x {error}" for error, count in self.errors.items())
            + "".join(f"; {each}" for each in self.examples)
        )


def compare(records: Sequence[StreamRecord], reference: Sequence[StreamRecord]) -> Differences:
    """Return how streams differ from the fault-free ones.

    Args:
        records: of streams that ended; one without an end counts as failed.
        reference: fault-free, the one of request i in place i.
    """
    found = Differences()
    for record in records:
        _compare_one(record, reference[record.number], found)
    return found


def count_differences(found: Sequence[int], expected: Sequence[int]) -> tuple[int, int, int]:
    """Return how many tokens are lost, doubled and changed between two sequences.

    Tokens after the last common one are changed as far as both sequences go: a different token leads to different ones.
    """
    lost = doubled = changed = 0
    for kind, a, b, c, d in SequenceMatcher(None, expected, found, autojunk=False).get_opcodes():
        if kind != "equal":
            both = min(b - a, d - c)
            changed += both
            lost += b - a - both
            doubled += d - c - both
    return lost, doubled, changed


def _compare_one(record: StreamRecord, expected: StreamRecord, found: Differences) -> None:
    found.streams += 1
    if not record.is_complete:
        found.failed += 1
        error = record.error or "it never ended"
        # Errors that differ in numbers only are one kind: the first one stands for all.
        kind = next((each for each in found.errors if _without_numbers(each) == _without_numbers(error)), error)
        found.errors[kind] = found.errors.get(kind, 0) + 1
    if record.token_ids != expected.token_ids:
        lost, doubled, changed = count_differences(record.token_ids, expected.token_ids)
        found.lost += lost
        found.duplicated += doubled
        found.changed += changed
        if len(found.examples) < 3 and (doubled or changed or record.is_complete):
            found.examples.append(_example(record, expected))
        return
    pairs = zip(record.logprobs, expected.logprobs, strict=False)
    found.changed_logprobs += sum(abs(left - right) > LOGPROB_TOLERANCE for left, right in pairs)
    found.changed_logprobs += abs(len(record.logprobs) - len(expected.logprobs))
    if record.is_complete:
        found.wrong_ends += _end(record) != _end(expected)


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+", "#", text)


def _end(record: StreamRecord) -> tuple[int, int, int]:
    return record.finish_reason, record.prompt_tokens, record.completion_tokens


def _example(record: StreamRecord, expected: StreamRecord) -> str:
    pairs = zip(record.token_ids, expected.token_ids, strict=False)
    first = next((place for place, (left, right) in enumerate(pairs) if left != right), len(record.token_ids))
    return (
        f"request {record.number} at token {first}: expected {expected.token_ids[first : first + 4]}, "
        f"found {record.token_ids[first : first + 4]}"
    )
