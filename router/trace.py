"""What a step loop tells of traced sequences. Who makes spans of it is injected: nothing here knows of any library.

A sequence is handed in with its trace. That is told of each step which computes tokens of it, and a step's span of the
calls meanwhile: shares of tokens for expert replicas, a layer's queries for context shards. Whom a call asks is told
its name in the message, for spans of its own below it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from protos.errors import ServingError

if TYPE_CHECKING:
    from router.scheduler import Work


class CallSpan(Protocol):
    """A question to another process. The first that is told of its end counts, all else is passed over."""

    @property
    def traceparent(self) -> str:
        """Return its name for the process that is asked, as W3C Trace Context writes it."""

    def answered(self, seconds: float, *, queue_us: int, compute_us: int) -> None:
        """End it: an answer came.

        Args:
            seconds: from asking to the answer's arrival.
            queue_us: what the other side says it waited before it computed.
            compute_us: what it says it computed.
        """

    def failed(self, error: ServingError) -> None:
        """End it: something else came, or nothing in time."""

    def dropped(self) -> None:
        """End it: nobody waits for the answer any more."""


class StepSpan(Protocol):
    """A step that computes tokens of a traced sequence, and of others."""

    def call(self, name: str, layer: int, process: str, num_tokens: int) -> CallSpan | None:
        """Begin a question to another process; None: there have been enough.

        Args:
            name: dispatch or attend.
            layer: decoder layer.
            process: the expert replica or context shard that is asked.
            num_tokens: what it is asked for.
        """

    def end(self) -> None:
        """End it, however it went."""


class SequenceTrace(Protocol):
    """A traced sequence."""

    def step(self, facts: StepFacts, first: StepSpan | None) -> StepSpan | None:
        """Begin a step that computes tokens of it; None: this one is not traced.

        Args:
            facts: about the step.
            first: another sequence's span of the same step, below which its calls are told of; None: there is none.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFacts:
    """What a step is to one of its sequences."""

    num_before: int
    """The sequence's tokens in the cache before it."""
    num_own: int
    """Those that it computes."""
    is_prompt: bool
    """Whether they are of a prompt, or are computed again as one."""
    num_sequences: int
    """That it computes tokens of."""
    num_tokens: int
    """Of all of them."""


class Asker(Protocol):
    """Asks other processes while a step computes: a transport, context shards."""

    trace: StepSpan | None
    """What calls belong to; None: they are not traced."""


@contextmanager
def traced_step(work: Sequence[Work], *askers: Asker | None) -> Iterator[None]:
    """Trace a step, if it is one of those that its traced sequences want to be told of.

    A call is of a step, not of a sequence in it, so it is told of once: below the first such sequence's span.
    """
    spans = _begun(work) if any(item.sequence.trace is not None for item in work) else ()
    if not spans:
        yield
        return
    _tell(askers, spans[0])
    try:
        yield
    finally:
        _tell(askers, None)
        for span in spans:
            span.end()


def _begun(work: Sequence[Work]) -> list[StepSpan]:
    spans: list[StepSpan] = []
    num_tokens = sum(item.num_tokens for item in work)
    for item in work:
        if (trace := item.sequence.trace) is None:
            continue
        facts = StepFacts(
            num_before=item.sequence.num_computed,
            num_own=item.num_tokens,
            is_prompt=item.sequence.is_prefilling,
            num_sequences=len(work),
            num_tokens=num_tokens,
        )
        span = trace.step(facts, spans[0] if spans else None)
        if span is not None:
            spans.append(span)
    return spans


def _tell(askers: Sequence[Asker | None], span: StepSpan | None) -> None:
    for each in askers:
        if each is not None:
            each.trace = span
