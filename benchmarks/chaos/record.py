"""What one stream brought, and when."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from protos.inference.v1 import inference_pb2 as pb


@dataclass(kw_only=True, slots=True)
class StreamRecord:
    """A stream; filled while it runs. Times are seconds of the monotonic clock."""

    number: int
    """Which request of the list."""
    worker: int
    """Which worker, and so which connection, it ran through."""
    began_s: float
    """When it was sent."""
    ended_s: float | None = None
    """When it ended, however; None: it runs."""
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    """(second, tokens) of every message with tokens."""
    token_ids: list[int] = field(default_factory=list)
    """Tokens in the order they came."""
    logprobs: list[float] = field(default_factory=list)
    """Their logprobs, if asked for."""
    finish_reason: int = pb.FINISH_REASON_UNSPECIFIED
    """As the last delta said."""
    prompt_tokens: int = 0
    """As usage said."""
    completion_tokens: int = 0
    """As usage said."""
    error: str | None = None
    """Why it failed; None: it did not, so far."""

    def take(self, message: pb.GenerateResponse, now_s: float) -> None:
        """Add a message."""
        kind = message.WhichOneof("event")
        if kind == "delta":
            delta = message.delta
            if delta.token_ids:
                self.arrivals.append((now_s, len(delta.token_ids)))
                self.token_ids += delta.token_ids
                self.logprobs += [each.logprob for each in delta.logprobs]
            self.finish_reason = delta.finish_reason or self.finish_reason
        elif kind == "finished":
            self.prompt_tokens = message.finished.usage.prompt_tokens
            self.completion_tokens = message.finished.usage.completion_tokens

    @property
    def is_complete(self) -> bool:
        """Tell whether it ended as a stream should."""
        return self.ended_s is not None and self.error is None

    def gaps(self) -> list[tuple[float, float]]:
        """Return (end, seconds) of each wait between two messages with tokens; one that still lasts is left out."""
        times = [second for second, _ in self.arrivals]
        return [(later, later - earlier) for earlier, later in pairwise(times)]

    @property
    def first_token_s(self) -> float | None:
        """Return the seconds from sending to the first token, None if none came."""
        return self.arrivals[0][0] - self.began_s if self.arrivals else None

    def ran_at(self, second: float) -> bool:
        """Tell whether it was under way at a time."""
        return self.began_s <= second and (self.ended_s is None or self.ended_s >= second)
