"""What the service tells an API about a request, in order: Started, many Deltas, Finished. Plain data.

Progress may come at any time before the first Delta, before Started as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LikelyToken:
    """One likely token at some position."""

    token_id: int
    text: bytes
    """Bytes the token adds to the text: none for a special token or without a tokenizer."""
    logprob: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredToken:
    """A token of a prompt or a choice, with its natural-log probability under the model itself."""

    token_id: int
    text: bytes
    """Bytes the token adds to the text: none for a special token or without a tokenizer."""
    logprob: float
    top: tuple[LikelyToken, ...] = ()
    """Likeliest tokens at that position, likeliest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """The routers accepted every sequence of the request."""

    request_id: str
    num_prompt_tokens: int
    """Tokens of all prompts, each prompt once."""
    prompt_logprobs: tuple[tuple[ScoredToken, ...], ...] = ()
    """Per prompt, one per token, when asked for; the first token has logprob 0 and no alternatives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """The request waits for room, or its prompt takes long to compute."""

    queue_position: int = 0
    """Its place among those that wait for room, 1 being the next to get some; 0: it has its room."""
    expected_start_s: float | None = None
    """Seconds until it gets room, from what was measured of those before it; None: not known, or it has its room."""
    num_prompt_done: int = 0
    """Prompt tokens computed, all sequences of the request together."""
    num_prompt_tokens: int = 0
    """Prompt tokens to compute, all sequences together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """More of one choice."""

    choice: int
    """Index among all choices: those of the first prompt, then of the next."""
    text: str
    """New text; may be empty while a character or a possible stop text is incomplete."""
    token_ids: tuple[int, ...]
    """New tokens; the tokens of a stop text are among them, though its text is not returned."""
    logprobs: tuple[ScoredToken, ...] = ()
    """One per new token when asked for."""
    finish_reason: FinishReason | None = None
    """Set on the last delta of a choice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What was counted."""

    prompt_tokens: int
    """Tokens of all prompts, each prompt once."""
    completion_tokens: int
    """Tokens generated, all choices together."""
    cached_tokens: int
    """Prompt tokens that a cache had, each prompt once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """Every choice has ended."""

    usage: Usage


ServiceEvent = Started | Progress | Delta | Finished
