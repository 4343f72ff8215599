"""Copies of real dispatches for replicas that are passed over: whoever answers one well and in time is back."""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import Tensor

from protos import errors
from router.plan import ReplicaShare
from router.transport.attempt import Attempt
from router.transport.evidence import Evidence
from router.transport.streams import ReplicaStreams

_LARGEST_PROBE = 64
"""Most tokens of a share that are copied."""


def probe(
    evidence: Evidence,
    streams: ReplicaStreams,
    shares: Collection[ReplicaShare],
    hidden_ND: Tensor,
    send: Callable[[ReplicaShare], Attempt],
    now: float,
) -> None:
    """See what became of probes, and copy a share to each ejected replica whose time has come.

    Args:
        evidence: knows who is ejected and what probes are under way.
        streams: to the replicas.
        shares: of the dispatch that was just sent.
        hidden_ND: its tokens.
        send: sends a share to the replica it names; raises ReplicaUnavailable.
        now: monotonic second.
    """
    for replica_id, under_way in list(evidence.probes.items()):
        if under_way.answer.done():
            del evidence.probes[replica_id]
            _judge(evidence, under_way, hidden_ND)
        elif now >= under_way.due_at:
            evidence.probes.pop(replica_id).abandon()
    for replica_id in evidence.ejection.ejected:
        if stream := streams.get(replica_id):
            evidence.ejection.hurry(replica_id, stream.last_answer_at, now)
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
        evidence.ejection.probed(replica_id, now)
        evidence.counts.probes += 1


def _share_for(replica_id: str, streams: ReplicaStreams, shares: Collection[ReplicaShare]) -> ReplicaShare | None:
    """Return a copy of a small part of a share, one whose experts a replica holds, addressed to it."""
    stream = streams.get(replica_id)
    if stream is None or not stream.is_ready:
        return None
    held = frozenset(stream.holder.expert_ids)
    return next((part for share in shares if (part := _part_of(share, held, replica_id))), None)


def _part_of(share: ReplicaShare, held: frozenset[int], replica_id: str) -> ReplicaShare | None:
    """Return the first run of a share's rows whose experts are held, cut where it grows large."""
    expert_ids: list[int] = []
    token_counts: list[int] = []
    start = stop = share.start
    for expert, count in zip(share.expert_ids, share.token_counts, strict=True):
        if expert in held:
            room = _LARGEST_PROBE - (stop - start)
            expert_ids.append(expert)
            token_counts.append(min(count, room))
            stop += token_counts[-1]
            if count >= room:
                break
        elif expert_ids:
            break
        else:
            start = stop = stop + count
    return ReplicaShare(replica_id, tuple(expert_ids), tuple(token_counts), start, stop) if expert_ids else None


def _judge(evidence: Evidence, answered: Attempt, hidden_ND: Tensor) -> None:
    """Readmit a replica that answered a probe well and in time."""
    try:
        answered.rows(hidden_ND)
        at_s = answered.result().at_s
    except errors.ServingError:
        return
    finally:
        answered.let_go()
    if at_s - answered.sent_at <= evidence.times.hedge_after_s(answered.share.stop - answered.share.start):
        evidence.ejection.won(answered.replica_id, at_s)
