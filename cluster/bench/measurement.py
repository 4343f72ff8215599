"""What is known of one request.

    scheduled ──lateness── sent ───────ttft─────── first ──gap── … ──gap── last ── end
                             └──────────────────────── e2e ─────────────────────────┘

`sent` is taken before the connection is opened, where a new one is needed. A message is one event of the stream that
brings tokens. All times are seconds after the run began, by one clock of this process.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import StrEnum


class Status(StrEnum):
    """How a request ended."""

    OK = "ok"
    FAILED = "failed"
    NOT_SENT = "not sent"
    """Too many were in flight when its time came."""
    INTERRUPTED = "interrupted"
    """The run ended before it did; no error of the server's."""


class CallFailed(Exception):
    """A request failed.

    Args:
        kind: a few words that failures are counted by.
        message: what the server or the network said.
        is_unreachable: nobody answered at all.
    """

    def __init__(self, kind: str, message: str, *, is_unreachable: bool = False) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message
        self.is_unreachable = is_unreachable


@dataclass(kw_only=True, slots=True)
class Measurement:
    """One request, filled in while it runs."""

    index: int
    """Which request of the load; from 0."""
    prompt_tokens: int | None
    """Tokens of the prompt that was sent; None: a text, whose tokens only the server can count."""
    max_tokens: int
    """Tokens asked for."""
    scheduled_s: float | None = None
    """When it was to be sent; None in a closed loop."""
    sent_s: float = 0.0
    """When it was sent."""
    end_s: float = 0.0
    """When its stream ended, for whatever reason."""
    status: Status = Status.INTERRUPTED
    """How it ended."""
    error: CallFailed | None = None
    """Why it failed; only of FAILED."""
    message_s: array[float] = field(default_factory=lambda: array("d"))
    """When each message came."""
    message_tokens: array[int] = field(default_factory=lambda: array("I"))
    """Tokens of each message; 1 where the server does not tell."""
    is_counted: bool = True
    """False: a message came without saying how many tokens it holds."""
    usage_prompt_tokens: int | None = None
    """The server's count of the prompt; None: not told."""
    usage_completion_tokens: int | None = None
    """The server's count of the answer; None: not told."""
    cached_tokens: int | None = None
    """Prompt tokens the server took from a cache; None: not told."""
    finish_reason: str | None = None
    """As the server named it."""

    def add_message(self, now_s: float, num_tokens: int | None) -> None:
        """Note that tokens came; None: some, one or more."""
        self.message_s.append(now_s)
        self.message_tokens.append(1 if num_tokens is None else num_tokens)
        self.is_counted = self.is_counted and num_tokens is not None

    @property
    def lateness_s(self) -> float | None:
        """How much later than scheduled it was sent; None where nothing was scheduled or sent."""
        if self.scheduled_s is None or self.status is Status.NOT_SENT:
            return None
        return self.sent_s - self.scheduled_s

    @property
    def ttft_s(self) -> float | None:
        """From sending to the first message; None while there is none."""
        return self.message_s[0] - self.sent_s if self.message_s else None

    @property
    def tpot_s(self) -> float | None:
        """(last message - first message) / (tokens - 1); None with fewer than two tokens."""
        if not self.message_s or self.num_tokens < 2:
            return None
        return (self.message_s[-1] - self.message_s[0]) / (self.num_tokens - 1)

    @property
    def e2e_s(self) -> float:
        """From sending to the end of the stream."""
        return self.end_s - self.sent_s

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer, by the server's count where there is one."""
        return self.num_arrived_tokens if self.usage_completion_tokens is None else self.usage_completion_tokens

    @property
    def num_arrived_tokens(self) -> int:
        """Tokens of the messages."""
        return sum(self.message_tokens)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt, by the server's count where there is one; 0 where nobody knows."""
        return (self.prompt_tokens or 0) if self.usage_prompt_tokens is None else self.usage_prompt_tokens

    @property
    def knows_tokens_per_message(self) -> bool:
        """Tell whether `message_tokens` is what each message held, told or implied by the total."""
        return self.is_counted or self.usage_completion_tokens == len(self.message_s)

    def gaps_s(self) -> list[float]:
        """Return the waits between messages; [messages - 1]."""
        return [later - earlier for earlier, later in zip(self.message_s, self.message_s[1:], strict=False)]
