"""What one front door accepts at most: the knobs that keep a flood from becoming an outage."""

from __future__ import annotations

from dataclasses import dataclass

from protos.errors import BadConfig

MAX_CHOICES = 16
"""Continuations per prompt (`n`)."""
MAX_PROMPTS = 64
"""Prompts of one completions request."""
MAX_SEQUENCES = 128
"""Prompts times choices of one request."""
MAX_STOP_TEXTS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_IDS = 64
MAX_LOGPROBS = 20
"""Likeliest alternatives reported per token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontDoorLimits:
    """Limits of one front door replica."""

    max_body_bytes: int = 16 * 1024 * 1024
    """Largest HTTP request body, in bytes; at least 1024. A longer one is refused while it arrives."""
    max_sequences: int = 1024
    """Most sequences in flight, counted over all requests; at least 1. More are refused as Overloaded."""
    max_connections: int = 4096
    """Most open connections to each API; at least 1. More are closed at once. Let processes open as many files."""
    max_queued_prompt_tokens: int = 4_000_000
    """Most prompt tokens admitted and not yet computed; at least 1. A longer single prompt is admitted alone."""
    request_timeout_s: float = 600.0
    """Seconds from admission after which a request ends with DeadlineExceeded; positive."""
    body_timeout_s: float = 60.0
    """Seconds a request's body, or a gRPC call's message, may take to come; positive."""
    drain_s: float = 10.0
    """Seconds that requests which run have to finish when Herd is told to end, or one of its front doors; positive."""
    lame_duck_s: float = 6.0
    """Seconds for which a front door that is stopped still takes requests, while its health checks say that nobody
    should come any more: load balancers must have noticed by then. At least 0."""
    health_timeout_s: float = 2.0
    """Seconds `/health`, `/metrics` and the status page wait for the routers; positive."""

    def check(self) -> None:
        """Refuse values that cannot work.

        Raises:
            BadConfig: a value is out of range.
        """
        floors = {
            "max_body_bytes": (self.max_body_bytes, 1024),
            "max_sequences": (self.max_sequences, 1),
            "max_connections": (self.max_connections, 1),
            "max_queued_prompt_tokens": (self.max_queued_prompt_tokens, 1),
        }
        for name, (value, floor) in floors.items():
            if value < floor:
                raise BadConfig(f"{name}: expected at least {floor}, found {value}; raise it")
        if not 0 <= self.lame_duck_s < float("inf"):
            raise BadConfig(f"lame_duck_s: expected a number of seconds, at least 0, found {self.lame_duck_s}; set one")
        for name, seconds in {
            "request_timeout_s": self.request_timeout_s,
            "body_timeout_s": self.body_timeout_s,
            "drain_s": self.drain_s,
            "health_timeout_s": self.health_timeout_s,
        }.items():
            if not 0 < seconds < float("inf"):
                raise BadConfig(f"{name}: expected a positive number of seconds, found {seconds}; set one")
