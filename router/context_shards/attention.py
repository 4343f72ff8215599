"""Attention of a step's tokens in global layers whose keys and values are on context shards.

Every shard of a sequence gets the queries at once and answers with what its tokens contribute. What the step's tokens
contribute to each other is computed here meanwhile; their keys and values go to the shard that has their positions, in
the same message, and stay there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.llama4.softmax import Partial, merge, partial_own
from protos.channel import MAX_MESSAGE_BYTES
from protos.codec import decode_tensor, write_tensor
from protos.context.v1 import context_pb2
from protos.errors import ServingError
from router.context_shards.segments import SequenceSegments
from router.context_shards.shards import ContextShards
from router.trace import CallSpan

_MOST_STEP_BYTES = MAX_MESSAGE_BYTES // 2
"""Most bytes of tensors in a step's message."""


@dataclass(slots=True)
class ContextSpan:
    """Rows [row_start, row_stop) of a batch: consecutive tokens of one sequence."""

    segments: SequenceSegments
    row_start: int
    row_stop: int
    start: int
    """Position of the first token; all before it are on shards."""
    views: dict[str, list[context_pb2.View]] = field(init=False)
    """What the first token's past is on each shard: worked out once, for a long past has a thousand segments."""

    def __post_init__(self) -> None:
        self.views = {}
        for segment, num_tokens in self.segments.before(self.start):
            view = context_pb2.View(segment_id=segment.segment_id, num_tokens=num_tokens)
            self.views.setdefault(segment.shard_id, []).append(view)

    @property
    def stop(self) -> int:
        """Return the position after the last token's."""
        return self.start + self.row_stop - self.row_start


@dataclass(slots=True)
class _Sent:
    """A step on its way."""

    shard_id: str
    step: context_pb2.Step
    spans: list[int] = field(default_factory=list)
    """For each query, whose it is: the span's index."""
    num_bytes: int = 0
    answer: Future[context_pb2.StepResult] | None = None
    span: CallSpan | None = None
    """Of it, if it is traced."""

    def send(self, shards: ContextShards) -> None:
        """Ask the shard."""
        if shards.trace is not None:
            num_tokens = sum(query.queries.shape[0] for query in self.step.queries)
            self.span = shards.trace.call("attend", self.step.layer, self.shard_id, num_tokens)
        if self.span is None:
            self.answer = shards.send(self.shard_id, self.step)
            return
        self.step.traceparent = self.span.traceparent
        sent_at = time.monotonic()
        self.answer = shards.send(self.shard_id, self.step)
        # Where it arrives, for here it is looked at when all else is done.
        self.answer.add_done_callback(_ends(self.span, sent_at))

    def forget(self, shards: ContextShards) -> None:
        """Drop whatever answer may still come."""
        shards.forget(self.shard_id, self.step.step_id)
        if self.span is not None:
            self.span.dropped()


def _ends(span: CallSpan, sent_at: float) -> Callable[[Future[context_pb2.StepResult]], None]:
    """Return what ends a span with the answer to what was sent at a monotonic second."""

    def end(answer: Future[context_pb2.StepResult]) -> None:
        error = answer.exception()
        if error is None:
            span.answered(time.monotonic() - sent_at, queue_us=0, compute_us=answer.result().compute_us)
        elif isinstance(error, ServingError):
            span.failed(error)

    return end


def attend(
    shards: ContextShards,
    spans: Sequence[ContextSpan],
    layer: int,
    q_THC: Tensor,
    k_TGC: Tensor,
    v_TGC: Tensor,
) -> Generator[None, None, Tensor]:
    """Store a step's keys and values; return attention [T, H, C]. Yields once, while the shards compute.

    Args:
        shards: the way to them.
        spans: all rows of the step; `ContextShards.extend` has placed their positions.
        layer: a global layer.
        q_THC: [T, H, C], position temperature included.
        k_TGC: [T, G, C].
        v_TGC: [T, G, C].

    Raises:
        ShardFailed: a shard did not answer; the keys and values of these tokens are then undefined.
    """
    sent: list[_Sent] = []
    try:
        for each in _steps(shards, spans, layer, q_THC, k_TGC, v_TGC):
            sent.append(each)
            each.send(shards)
        own = [_own(span, q_THC, k_TGC, v_TGC) for span in spans]
        yield
        answers: list[dict[str, list[Partial]]] = [{} for _ in spans]
        for each in sent:
            _collect(shards, each, q_THC, answers)
    finally:
        for each in sent:
            each.forget(shards)
    mixed_THC = torch.empty_like(q_THC)
    for span, mine, others in zip(spans, own, answers, strict=True):
        mixed_THC[span.row_start : span.row_stop] = merge([mine, *map(_joined, others.values())])
    return mixed_THC


def _own(span: ContextSpan, q_THC: Tensor, k_TGC: Tensor, v_TGC: Tensor) -> Partial:
    rows = slice(span.row_start, span.row_stop)
    return partial_own(q_THC[rows], k_TGC[rows].transpose(0, 1), v_TGC[rows].transpose(0, 1))


def _steps(
    shards: ContextShards, spans: Sequence[ContextSpan], layer: int, q_THC: Tensor, k_TGC: Tensor, v_TGC: Tensor
) -> Iterator[_Sent]:
    """Yield the messages of a layer: one per shard, more where one would be too long."""
    open_steps: dict[str, _Sent] = {}
    for shard_id, num_bytes, fill in _parts(spans, q_THC, k_TGC, v_TGC):
        sent = open_steps.get(shard_id)
        if sent is not None and sent.num_bytes + num_bytes > _MOST_STEP_BYTES:
            yield open_steps.pop(shard_id)
            sent = None
        if sent is None:
            sent = open_steps[shard_id] = _Sent(shard_id, context_pb2.Step(step_id=shards.next_step(), layer=layer))
        fill.into(sent)
        sent.num_bytes += num_bytes
    yield from open_steps.values()


@dataclass(frozen=True, slots=True)
class _NewKeys:
    segment_id: int
    start: int
    keys_TGC: Tensor
    values_TGC: Tensor

    def into(self, sent: _Sent) -> None:
        append = sent.step.appends.add(segment_id=self.segment_id, start=self.start)
        write_tensor(append.keys, self.keys_TGC)
        write_tensor(append.values, self.values_TGC)


@dataclass(frozen=True, slots=True)
class _Queries:
    span: int
    queries_THC: Tensor
    views: Sequence[context_pb2.View]

    def into(self, sent: _Sent) -> None:
        query = sent.step.queries.add()
        write_tensor(query.queries, self.queries_THC)
        query.views.extend(self.views)
        sent.spans.append(self.span)


def _parts(
    spans: Sequence[ContextSpan], q_THC: Tensor, k_TGC: Tensor, v_TGC: Tensor
) -> Iterator[tuple[str, int, _NewKeys | _Queries]]:
    """Yield (shard, bytes, what to send there), none larger than a message may be."""
    most_rows = max(_MOST_STEP_BYTES // (q_THC[0].numel() * q_THC.itemsize), 1)
    for index, span in enumerate(spans):
        for segment, low, high in span.segments.between(span.start, span.stop):
            for first in range(low, high, most_rows):
                last = min(first + most_rows, high)
                rows = slice(span.row_start + first - span.start, span.row_start + last - span.start)
                keys = _NewKeys(segment.segment_id, first - segment.start, k_TGC[rows], v_TGC[rows])
                yield segment.shard_id, 2 * keys.keys_TGC.nbytes, keys
        for shard_id, views in span.views.items():
            for first in range(span.row_start, span.row_stop, most_rows):
                queries_THC = q_THC[first : min(first + most_rows, span.row_stop)]
                yield shard_id, queries_THC.nbytes, _Queries(index, queries_THC, views)


def _joined(pieces: Sequence[Partial]) -> Partial:
    """Return what a shard said of consecutive rows as one part."""
    if len(pieces) == 1:
        return pieces[0]
    return torch.cat([outputs for outputs, _ in pieces], dim=1), torch.cat([sums for _, sums in pieces], dim=1)


def _collect(shards: ContextShards, sent: _Sent, q_THC: Tensor, answers: Sequence[dict[str, list[Partial]]]) -> None:
    """Wait for an answer, and add what it says to each span's answers by shard, row after row."""
    assert sent.answer is not None
    result = shards.await_answer(sent.shard_id, sent.step, sent.answer)
    num_heads, head_size = q_THC.shape[1:]
    for index, query, partial in zip(sent.spans, sent.step.queries, result.partials, strict=True):
        num_rows = query.queries.shape[0]
        outputs_HTC = decode_tensor(
            partial.outputs, dtype=q_THC.dtype, shape=(num_heads, num_rows, head_size), name="outputs"
        )
        log_sums_HT = decode_tensor(partial.log_sums, dtype=torch.float32, shape=(num_heads, num_rows), name="log_sums")
        part = outputs_HTC.to(q_THC.device), log_sums_HT.to(q_THC.device)
        answers[index].setdefault(sent.shard_id, []).append(part)
