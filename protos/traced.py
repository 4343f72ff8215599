"""What a process tells of a message that named a span, once it has answered it; who makes spans of it is injected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from protos.errors import ServingError


@dataclass(frozen=True, kw_only=True, slots=True)
class TracedAnswer:
    """An answer, sent or about to be."""

    traceparent: str
    """The sender's span, as the message had it; whatever a stranger wrote there."""
    layer: int
    """Decoder layer."""
    num_tokens: int
    """Of the message."""
    seconds: float
    """From reading the message to its answer."""
    queue_s: float = 0.0
    """Of them, before computing began."""
    compute_s: float = 0.0
    """Of them, computing; with other messages that were computed together."""
    error: ServingError | None = None
    """Why it was refused or failed."""


TellAnswer = Callable[[TracedAnswer], None]
"""Takes note of such an answer, in the thread that sends it: it must not block and not raise."""
