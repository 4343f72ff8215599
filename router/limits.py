"""What one engine takes on. Plain data without torch, so that whoever plans for an engine need not load it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.config import ModelConfig
from router.kv_cache.layout import CacheLayout, KvDtype
from router.paging.paged_kv import PagingPlan

MOST_DISPATCH_BYTES = 32 * 1024 * 1024
"""Of a step's tokens on their way to experts in other processes: half of the largest message there is."""


def most_step_tokens(config: ModelConfig, item_bytes: int) -> int:
    """Return the most tokens of a step whose experts are in other processes.

    Args:
        config: the model's.
        item_bytes: of a number that is computed with.
    """
    return MOST_DISPATCH_BYTES // (max(config.experts_per_token, 1) * config.hidden_size * item_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLimits:
    """What an engine takes on."""

    context_length: int
    """Most tokens of prompt and output together, per sequence."""
    kv_bytes: int
    """Bytes of key/value cache all sequences share."""
    kv_dtype: KvDtype | None = None
    """What keys and values are stored in; None: the dtype the model computes in."""
    page_tokens: int = 16
    """Tokens per page of the cache; the greatest divisor it shares with the attention chunk is taken."""
    prefix_cache: bool = True
    """Keep computed pages after their sequence ends, for prompts that begin alike."""
    host_kv_bytes: int = 0
    """Bytes of host memory for pages the prefix cache has no room for; 0: they go to disk at once, or are dropped."""
    disk_kv_bytes: int = 0
    """Size of a file for pages that host memory has no room for; 0: none."""
    kv_folder: Path | None = None
    """Where that file is kept over restarts; None: a nameless one in the system's temporary folder."""
    on_shards: bool = False
    """Whether keys and values of global layers are on context shards: then the cache is for local layers alone, and
    nothing of it is kept for later, here or in host memory or on disk."""
    experts_in_process: bool = False
    """Whether the experts are in the engine's own process: then no dispatch has to fit a message."""
    slots: int = 16
    """Most sequences that generate at once."""
    max_waiting: int = 256
    """Most sequences accepted beyond that; more are refused with Overloaded."""
    step_tokens: int = 2048
    """Most tokens computed in one step."""
    prefill_stretch: float = 1.75
    """How many times longer a step may take because a prompt shares it with sequences that generate; at least 1. Where
    several prompts wait, the extra time is longer: a burst of them is read in large pieces."""

    idle_priority: bool = False
    """Whether the step loop computes only on cores that nobody else wants (Linux's SCHED_IDLE)."""

    def layout(self, config: ModelConfig, dtype: KvDtype) -> CacheLayout:
        """Return what the cache of a model that computes in `dtype` takes."""
        return CacheLayout(config, self.kv_dtype or dtype, self.page_tokens)

    def paging(self, layout: CacheLayout) -> PagingPlan:
        """Return how many pages of each kind there are."""
        if self.on_shards:
            return layout.plan_local(self.kv_bytes)
        return layout.plan(self.kv_bytes, self.slots, self.context_length)
