"""What a router is asked to generate and what it answers: plain data that crosses the process from the front door."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from protos.errors import ServingError
from router.kv_tiers.counts import TierCounts


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How to choose tokens. Checked by `router.sampling_bounds.check_sampling`."""

    temperature: float = 1.0
    """0 picks the likeliest token; finite, in [0, 100]."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of likeliest tokens whose probability reaches this; in (0, 1]."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as likely as the likeliest; in [0, 1]."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens seen in prompt or output; in (0, 100]."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token already generated; in [-2, 2]."""
    frequency_penalty: float = 0.0
    """Subtracted once per earlier occurrence in the output; in [-2, 2]."""
    seed: int = 0
    """With the position, fixes the random choice: a replay on another replica chooses alike; in [0, 2**64)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationRequest:
    """One sequence to generate: ids in, ids out. Text, stop strings and choices are the front door's."""

    request_id: str
    """Unique in the cluster; `Engine.cancel` takes it."""
    prompt_ids: tuple[int, ...]
    """At least one token."""
    max_tokens: int
    """Most tokens to generate; at least 1."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """How to choose them."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the output; not emitted."""
    logprobs: int | None = None
    """Likeliest alternatives to report per generated token; None: report no logprobs at all."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens."""
    priority: int = 0
    """Lower numbers are served first; among equals, tenants in turn, and a tenant's own in order of arrival."""
    tenant: str = ""
    """On whose behalf: where several tenants wait for slots, they get them in turn."""
    even_share: bool = False
    """Whether its tenant's sequences get no more tokens in a step than those of the tenant with the fewest."""
    timeout_s: float | None = None
    """Seconds from submission after which the sequence ends with DeadlineExceeded; None: no limit."""
    traceparent: str = ""
    """Names the span that the sequence's span belongs to, as W3C Trace Context writes it; empty: it is not traced."""
    num_replayed: int = 0
    """Last tokens of `prompt_ids` that another router generated before this one took over; fewer than all of them.
    They count as output for penalties, and as prompt for everything else: `max_tokens` is what is still to come."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprob:
    """Natural-log probability of a token under the model itself, before temperature and penalties."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, logprob) of the likeliest tokens, likeliest first; as many as were asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptProgress:
    """The prompt takes more than a step, and this much of it is in the cache.

    It may be less than was told before: a sequence that makes room for others may have to begin again.
    """

    num_done: int
    """Prompt tokens in the cache."""
    num_total: int
    """Prompt tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptDone:
    """The prompt is in the cache; the first token follows."""

    num_cached: int = 0
    """Prompt tokens that were not computed because a cache had them."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One per prompt token when asked for; the first has logprob 0 and no alternatives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenChosen:
    """One more token."""

    token_id: int
    logprob: TokenLogprob | None = None
    """Present when the request asked for logprobs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """The last event of every sequence that was accepted."""

    reason: Literal["stop", "length", "error"]
    error: ServingError | None = None
    """Present when the reason is "error"."""


EngineEvent = PromptProgress | PromptDone | TokenChosen | Ended
Emit = Callable[[EngineEvent], None]
"""Whom an engine tells, from its own thread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PageCounts:
    """What the pages of one kind of layers are there for."""

    total: int = 0
    used: int = 0
    """Held by sequences; a page that several share counts once."""
    kept: int = 0
    """Held by nobody, and kept for prompts that begin alike."""

    @property
    def free(self) -> int:
        """Return those that nobody holds and nothing is kept in."""
        return self.total - self.used - self.kept


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLoad:
    """How busy an engine is at one moment."""

    running: int
    """Sequences that hold a slot."""
    waiting: int
    """Sequences accepted and without a slot."""
    queued_prompt_tokens: int
    """Prompt tokens accepted and not yet computed."""
    kv_used_bytes: int
    """Bytes of cache that sequences hold; pages that several share count once."""
    kv_total_bytes: int
    slots: int
    """Most sequences that generate at once."""
    generated_tokens: int
    """Tokens generated since the start."""
    kv_cached_bytes: int = 0
    """Bytes of cache that nobody holds and that are kept for prompts that begin alike; free for whoever needs them."""
    global_pages: PageCounts = PageCounts()
    """Pages of the cache for global layers."""
    local_pages: PageCounts = PageCounts()
    """Those for local layers."""
    kv_tiers: TierCounts = field(default_factory=TierCounts)
    """What host memory and disk hold of pages that left the cache, and gave back."""
    prompt_tokens: int = 0
    """Prompt tokens of sequences that got a slot since the start."""
    cached_tokens: int = 0
    """Those of them that the prefix cache had."""
    repaired_tokens: int = 0
    """Tokens computed again since the start because a context shard was lost."""
    context_free_tokens: int | None = None
    """Tokens that further sequences may have on context shards; None: there are none."""
    context_wanted_tokens: int = 0
    """Tokens that all sequences may get there, those that wait for room included."""
    preemptions: int = 0
    """Times a running sequence made room for another since the start."""
    prefill_tokens_per_s: float = 0.0
    """How fast prompts are computed when nobody generates; 0 until measured."""
