"""Copies of real dispatches for replicas that are passed over: whoever answers one well and in time is back."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace

from torch import Tensor

from protos import errors
from router.plan import ReplicaShare
from router.transport.attempt import Attempt
from router.transport.evidence import Evidence
from router.transport.streams import ReplicaStreams

_LARGEST_PROBE = 64
"""Tokens of the largest share that is copied."""
_ALIVE_S = 0.25
"""Seconds since an answer, however late it was itself, in which it is a sign of life: the replica is probed at once."""


def probe(
    evidence: Evidence,
    streams: ReplicaStreams,
    shares: Collection[ReplicaShare],
    hidden_ND: Tensor,
    send: Callable[[ReplicaShare], Attempt],
) -> None:
    """See what became of probes, and copy a share to each ejected replica whose time has come.

    Args:
        evidence: knows who is ejected and what probes are under way.
        streams: to the replicas.
        shares: of the dispatch that was just sent.
        hidden_ND: its tokens.
        send: sends a share to the replica it names; raises ReplicaUnavailable.
    """
    now = time.monotonic()
    for replica_id, under_way in list(evidence.probes.items()):
        if under_way.answer.done():
            del evidence.probes[replica_id]
            _judge(evidence, under_way, hidden_ND)
    for replica_id in evidence.ejection.ejected:
        stream = streams.get(replica_id)
        if stream is not None and stream.last_answer_at > now - _ALIVE_S:
            evidence.ejection.hurry(replica_id, now)
    for replica_id in evidence.ejection.due(now):
        share = _share_for(replica_id, streams, shares)
        if share is None:
            continue
        try:
            newest = send(share)
        except errors.ReplicaUnavailable:
            continue
        if unanswered := evidence.probes.pop(replica_id, None):
            unanswered.abandon()  # or its shared memory would stay taken for as long as the stream lasts
        evidence.probes[replica_id] = newest
        evidence.counts.probes += 1


def _share_for(replica_id: str, streams: ReplicaStreams, shares: Collection[ReplicaShare]) -> ReplicaShare | None:
    """Return a copy of a small share whose experts a replica holds, addressed to it."""
    stream = streams.get(replica_id)
    if stream is None or not stream.is_ready:
        return None
    held = set(stream.holder.expert_ids)
    for share in shares:
        if share.stop - share.start <= _LARGEST_PROBE and held.issuperset(share.expert_ids):
            return replace(share, replica_id=replica_id)
    return None


def _judge(evidence: Evidence, answered: Attempt, hidden_ND: Tensor) -> None:
    """Readmit a replica that answered a probe well and in time."""
    try:
        answered.rows(hidden_ND)
        at_s = answered.answer.result(0).at_s
    except errors.ServingError:
        return
    finally:
        answered.let_go()
    if at_s - answered.sent_at <= evidence.times.hedge_after_s(answered.share.stop - answered.share.start):
        evidence.ejection.won(answered.replica_id, at_s)
