"""What each kind of deployment needs, from what its replicas report. Pure arithmetic.

Reports that are missing or old make the need unknown, and then nothing changes: while a cluster cannot be measured, no
replica must be taken away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.autoscaling import CALM, Need


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontDoorStats:
    """One front door."""

    at_s: float
    """When it was measured."""
    sequences: float
    """Sequences in flight."""
    queued_prompt_tokens: float
    """Prompt tokens admitted and not yet computed."""
    idle_s: float = 0.0
    """Seconds since it had a sequence; 0: it has."""
    long_sequences: float = 0.0
    """Sequences of long requests in flight, not among `sequences`."""
    long_idle_s: float = math.inf
    """Seconds since it had one of those; more than any time there is where there is no pool for them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterStats:
    """One router."""

    at_s: float
    """When it was measured."""
    kv_share: float
    """Part of its KV cache that sequences hold; in [0, 1]."""
    slot_share: float
    """Sequences accepted over its slots; above 1 some wait."""
    queued_prompt_tokens: float
    """Prompt tokens accepted and not yet computed."""
    prompt_tokens_per_s: float = 0.0
    """Prompt tokens that come to it per second and that its cache does not have."""
    prefill_tokens_per_s: float = 0.0
    """Prompt tokens it can compute per second; 0: not measured yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertStats:
    """One expert replica."""

    at_s: float
    """When it was measured."""
    tokens_per_s: float
    """Tokens it computes per second, all experts and layers together."""
    capacity_tokens_per_s: float
    """Tokens it computes per second of computing; 0: not measured yet."""
    queue_s: float
    """Seconds of computing that wait."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """What replicas are measured against."""

    stale_s: float = 5.0
    """Seconds after which a report is old; positive."""
    door_sequences: float = 512.0
    """Sequences in flight that use one front door in full; positive."""
    door_queued_tokens: float = 2_000_000.0
    """Prompt tokens waiting that use one front door in full; positive."""
    backlog_s: float = 1.0
    """Seconds of queued prompt tokens that a router may have; positive."""
    ttft_s: float = 2.0
    """Seconds to the first token that clients may wait; positive."""
    queue_s: float = 0.002
    """Seconds of work that may wait at an expert replica; positive. A token waits once per MoE layer."""


def front_door_need(stats: Sequence[FrontDoorStats], targets: Targets, now: float) -> Need | None:
    """Return what front doors need: room for sequences and for prompts that wait.

    Args:
        stats: of every front door that runs.
        targets: what one takes.
        now: on the clock of the reports.
    """
    if not _are_fresh([each.at_s for each in stats], targets, now):
        return None
    sequences = sum(each.sequences for each in stats) / targets.door_sequences
    tokens = sum(each.queued_prompt_tokens for each in stats) / targets.door_queued_tokens
    return Need(demand=max(sequences, tokens))


def router_need(
    stats: Sequence[RouterStats],
    targets: Targets,
    now: float,
    *,
    ttft_s: float | None = None,
    experts_are_late: bool = False,
) -> Need | None:
    """Return what routers need: KV, slots and prompts as demand, their backlog and time to first token as waits.

    Args:
        stats: of every router that runs.
        targets: what one takes.
        now: on the clock of the reports.
        ttft_s: recent time to the first token, in seconds; None: not known.
        experts_are_late: whether work waits at experts: then routers look slow and full whatever their number is, so
            it stays until there are enough experts.
    """
    if experts_are_late or not _are_fresh([each.at_s for each in stats], targets, now):
        return None
    kv = sum(each.kv_share for each in stats)
    slots = sum(each.slot_share for each in stats)
    # The backlog of all: the front doors share new requests out by load, and a long prompt alone is no reason.
    measured = [each for each in stats if each.prefill_tokens_per_s > 0]
    prefill = sum(each.prompt_tokens_per_s / each.prefill_tokens_per_s for each in measured)
    rate = sum(each.prefill_tokens_per_s for each in measured)
    backlog_s = sum(each.queued_prompt_tokens for each in measured) / rate if rate else 0.0
    lateness = max(backlog_s / targets.backlog_s, (ttft_s or 0.0) / targets.ttft_s)
    return Need(demand=max(kv, slots, prefill), lateness=lateness)


def long_router_need(
    stats: Sequence[RouterStats], targets: Targets, now: float, *, sequences: float, slots: float
) -> Need | None:
    """Return what routers of long requests need: KV and slots. Long prompts wait for themselves: no time is too long.

    Args:
        stats: of every one that runs.
        targets: what one takes.
        now: on the clock of the reports.
        sequences: long ones in flight at all front doors, those in line there included.
        slots: of one router.
    """
    if not _are_fresh([each.at_s for each in stats], targets, now):
        return None
    return Need(demand=max(sum(each.kv_share for each in stats), sequences / slots))


def experts_need(stats: Sequence[ExpertStats], targets: Targets, now: float) -> Need | None:
    """Return what the replicas of an expert group need: token rate over capacity as demand, the queue as wait.

    Args:
        stats: of every replica of the group that runs.
        targets: what one takes.
        now: on the clock of the reports.
    """
    if not _are_fresh([each.at_s for each in stats], targets, now):
        return None
    demand = sum(each.tokens_per_s / each.capacity_tokens_per_s for each in stats if each.capacity_tokens_per_s > 0)
    return Need(demand=demand, lateness=sum(each.queue_s for each in stats) / len(stats) / targets.queue_s)


def context_need(tokens: Sequence[float | None], shard_tokens: float) -> Need | None:
    """Return what context shards need: room for every token that sequences may get, and to stay while there are any.

    A shard that goes takes keys and values with it, which would be computed again.

    Args:
        tokens: that those of each deployment of routers may get; None: not known.
        shard_tokens: that one shard holds; positive.
    """
    known = [each for each in tokens if each is not None]
    if not known or len(known) < len(tokens):
        return None
    return Need(demand=sum(known) / shard_tokens, lateness=CALM if any(known) else 0.0)


def _are_fresh(times: Sequence[float], targets: Targets, now: float) -> bool:
    """Tell whether there are reports and none is old."""
    return bool(times) and all(now - at_s <= targets.stale_s for at_s in times)
