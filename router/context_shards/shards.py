"""All context shards of a router: who is there, where a new segment goes, what was lost."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from itertools import count

from protos.context.v1 import context_pb2
from protos.errors import ContextLost, NoReplica, Overloaded, ReplicaError, ServingError
from protos.tls import Identity
from router.context_shards.segments import Segment, SequenceSegments
from router.context_shards.stream import ShardHolder, ShardStream
from router.trace import StepSpan

_ANSWER_S = 600.0
"""Longest wait for an answer. A shard that hangs is found sooner, by the keepalive of its connection."""
_WAIT_STEP_S = 0.25
"""Seconds between two calls of `on_wait`."""
_REFRESH_S = 0.5
_PATIENCE_S = 600.0
_STANDSTILL_S = 30.0
"""Longer than a shard takes to start again."""
_RECONNECT_S = 1.0
"""How long a stream that broke may take to open again before its segments count as lost."""


class ShardFailed(Exception):
    """A step did not get its answer from a shard; its segments there are to be looked after."""

    def __init__(self, shard_id: str, error: ServingError, segment_ids: Sequence[int], *, session: int = -1) -> None:
        super().__init__(f"{shard_id}: {error.message}")
        self.shard_id = shard_id
        self.error = error
        self.segment_ids = tuple(segment_ids)
        """What the step was to write there."""
        self.session = session
        """The stream's that was given up; what an earlier one was told of the shard says nothing. -1: it had broken."""


class ContextShards:
    """Streams to every shard, and the books of this router's segments.

    `update` and `close` may be called from any thread, everything else from the engine's.

    Args:
        router_id: who owns the segments.
        fingerprint: of our model.
        segment_tokens: positions of a segment; whole attention chunks.
        patience_s: seconds that sequences wait for room where shards are full or gone, restarts included.
        standstill_s: seconds after which sequences that all wait for room make some for each other.
        identity: what to show shards and to believe; None: no encryption.
    """

    def __init__(
        self,
        *,
        router_id: str,
        fingerprint: str,
        segment_tokens: int,
        patience_s: float = _PATIENCE_S,
        standstill_s: float = _STANDSTILL_S,
        identity: Identity | None = None,
    ) -> None:
        self._identity = identity
        self.segment_tokens = segment_tokens
        self.num_lost_tokens = 0
        """Tokens whose keys and values were lost with their shard, since the start."""
        self.on_wait: Callable[[], None] = lambda: None
        """Called every so often while an answer is waited for; what it raises ends the wait."""
        self.trace: StepSpan | None = None
        """Set by the step loop while a traced step computes: what questions belong to. Else None."""
        self._router_id = router_id
        self._patience_s = patience_s
        self._standstill_s = standstill_s
        self._lacking: NoReplica | None = None
        self._made_room_at = 0.0
        self._fingerprint = fingerprint
        self._changed = threading.Condition()
        self._streams: dict[str, ShardStream] = {}
        self._live: list[SequenceSegments] = []
        self._refreshed_at = 0.0
        self._segment_ids = count(1)
        self._step_ids = count(1)

    def update(self, holders: Iterable[ShardHolder]) -> None:
        """Connect to the shards there are, and close the streams to those that are gone."""
        wanted = {holder.shard_id: holder for holder in holders}
        with self._changed:
            streams = {shard_id: stream for shard_id, stream in self._streams.items() if shard_id in wanted}
            gone = [stream for shard_id, stream in self._streams.items() if shard_id not in wanted]
            for shard_id in wanted.keys() - streams.keys():
                streams[shard_id] = ShardStream(
                    wanted[shard_id],
                    router_id=self._router_id,
                    fingerprint=self._fingerprint,
                    on_change=self._notice,
                    identity=self._identity,
                )
            self._streams = streams  # another one, never changed: the engine's thread reads it without a lock
            self._changed.notify_all()
        for stream in gone:
            stream.close()

    def wait_ready(self, num_shards: int, timeout_s: float) -> bool:
        """Wait until so many shards can be reached; tell whether they can."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._ready()) >= num_shards, timeout_s)

    def close(self) -> None:
        """Close every stream. Idempotent."""
        self.update(())

    @property
    def free_tokens(self) -> int:
        """Return the tokens that further sequences may have: what is free, less what is promised and not there."""
        owed = sum(segments.promised - segments.num_held for segments in self._live)
        return sum(stream.free_tokens for stream in self._ready().values()) - owed

    @property
    def lacking(self) -> NoReplica | None:
        """Return what a sequence did not find that waits for room; None: none waits."""
        return None if self._oldest_wait() is None else self._lacking

    @property
    def is_at_standstill(self) -> bool:
        """Tell whether a sequence has waited for room for so long that another one should make some."""
        oldest = self._oldest_wait()
        return oldest is not None and time.monotonic() - max(oldest, self._made_room_at) >= self._standstill_s

    def refresh(self) -> None:
        """Ask every shard for the room it has: other routers come and go. At most twice a second; does not wait."""
        now = time.monotonic()
        if now - self._refreshed_at >= _REFRESH_S:
            self._refreshed_at = now
            for stream in self._ready().values():
                stream.release()

    def can_promise(self, num_tokens: int) -> bool:
        """Tell whether there is room for a sequence of so many tokens beside all that others will yet get.

        Segments lie on one shard each, so it does not suffice that there is as much in all.
        """
        if num_tokens > self.free_tokens:
            return False
        sizes = SequenceSegments(self.segment_tokens, num_tokens).sizes_to_place()
        for segments in self._live:
            sizes += segments.sizes_to_place()
        free = [-room for room in self._room().values()]
        heapq.heapify(free)
        for size in sorted(sizes, reverse=True):
            if -free[0] < size:
                return False
            heapq.heapreplace(free, free[0] + size)
        return True

    def promise(self, num_tokens: int) -> SequenceSegments | None:
        """Return a new sequence's segments, none yet, with room kept for its tokens; None if there is none."""
        if not self.can_promise(num_tokens):
            return None
        segments = SequenceSegments(self.segment_tokens, num_tokens)
        self._live.append(segments)
        return segments

    def release(self, segments: SequenceSegments) -> None:
        """Drop a sequence's segments wherever they are. Again is no harm."""
        if segments not in self._live:
            return
        self._live.remove(segments)
        self._drop(segments.segments)
        segments.segments.clear()

    def make_room(self, segments: SequenceSegments) -> None:
        """Drop a sequence's segments for those that wait; they then have as long again before another one does."""
        self._made_room_at = time.monotonic()
        self.release(segments)

    def extend(self, segments: SequenceSegments, stop: int) -> bool:
        """Place segments for every position before `stop`, and anew those whose shard is gone.

        Returns:
            Whether all have a place. If not, try again: shards start, and other sequences end.

        Raises:
            NoReplica: this sequence has found no room for longer than `patience_s`.
        """
        try:
            self._place(segments, stop)
        except NoReplica as lacking:
            now = time.monotonic()
            self._lacking = lacking.with_traceback(None)
            if segments.lacking_since is None:
                segments.lacking_since = now
            if now - segments.lacking_since >= self._patience_s:
                raise self._lacking from None
            self.refresh()
            return False
        segments.lacking_since = None
        return True

    def next_step(self) -> int:
        """Return a new step's id."""
        return next(self._step_ids)

    def send(self, shard_id: str, step: context_pb2.Step) -> Future[context_pb2.StepResult]:
        """Send a step to a shard.

        Raises:
            ShardFailed: it is not there, or not connected.
        """
        stream = self._streams.get(shard_id)
        written = [append.segment_id for append in step.appends]
        if stream is None:
            raise ShardFailed(shard_id, NoReplica(f"expected context shard {shard_id}, found it gone"), written)
        try:
            return stream.send(step)
        except ReplicaError as error:
            raise ShardFailed(shard_id, error, written) from error

    def await_answer(
        self, shard_id: str, step: context_pb2.Step, answer: Future[context_pb2.StepResult]
    ) -> context_pb2.StepResult:
        """Return a step's answer.

        Raises:
            ShardFailed: it did not come.
            ServingError: the step was refused for what it says. This is our bug.
        """
        written = [append.segment_id for append in step.appends]
        give_up_at = time.monotonic() + _ANSWER_S
        while not wait([answer], _WAIT_STEP_S).done:
            self.on_wait()
            if time.monotonic() > give_up_at:
                session = -1
                if (stream := self._streams.get(shard_id)) is not None:
                    session = stream.num_sessions
                    stream.reset()
                late = NoReplica(f"expected context shard {shard_id} to answer within {_ANSWER_S:g} s, found nothing")
                raise ShardFailed(shard_id, late, written, session=session)
        try:
            return answer.result()
        except (ReplicaError, Overloaded) as error:
            raise ShardFailed(shard_id, error, written) from error

    def forget(self, shard_id: str, step_id: int) -> None:
        """Drop whatever answer may still come."""
        if (stream := self._streams.get(shard_id)) is not None:
            stream.forget(step_id)

    def settle(self, failed: ShardFailed) -> None:
        """Find out what is lost after a failure, and mark it. Blocks for a moment while a stream may come back."""
        shard_id = failed.shard_id
        if isinstance(failed.error, Overloaded):
            self._lose(shard_id, set(failed.segment_ids))
            return
        if isinstance(failed.error, ContextLost) and "segment_id" in failed.error.metadata:
            self._lose(shard_id, {int(failed.error.metadata["segment_id"])})
            return
        stream = self._streams.get(shard_id)
        if stream is not None:

            def is_back() -> bool:
                return stream.is_ready and stream.num_sessions > failed.session

            with self._changed:
                self._changed.wait_for(lambda: is_back() or shard_id not in self._streams, _RECONNECT_S)
            if is_back() and shard_id in self._streams:
                held = {each.segment_id for each in self._on(shard_id)}
                self._lose(shard_id, held - stream.segment_ids)
                stream.release(sorted(stream.segment_ids - held))  # those we could not drop while it was away
                return
        self._lose(shard_id, {each.segment_id for each in self._on(shard_id)})

    def _on(self, shard_id: str) -> list[Segment]:
        return [each for segments in self._live for each in segments.segments if each.shard_id == shard_id]

    def _lose(self, shard_id: str, segment_ids: set[int]) -> None:
        """Mark segments as lost; they get another place with the next `extend`."""
        for segments in self._live:
            for segment in segments.segments:
                if segment.shard_id == shard_id and segment.segment_id in segment_ids:
                    self._drop([segment])
                    self.num_lost_tokens += max(min(segment.stop, segments.num_tokens) - segment.start, 0)
                    segment.is_lost = segment.start < segments.num_tokens
                    segment.shard_id = ""
            self._drop(segments.cut_unplaced())

    def _drop(self, dropped: Iterable[Segment]) -> None:
        by_shard: dict[str, list[int]] = {}
        for segment in dropped:
            by_shard.setdefault(segment.shard_id, []).append(segment.segment_id)
        for shard_id, segment_ids in by_shard.items():
            if (stream := self._streams.get(shard_id)) is not None:
                stream.release(segment_ids)

    def _place(self, segments: SequenceSegments, stop: int) -> None:
        for segment in segments.lost:
            if not segment.shard_id:
                shard_id = self._choose(segments.most_in(segment.start))
                segment.shard_id, segment.segment_id = shard_id, next(self._segment_ids)
        while (start := segments.covered) < stop:
            shard_id = self._choose(segments.most_in(start))
            segments.segments.append(Segment(next(self._segment_ids), shard_id, start, start + segments.segment_tokens))

    def _choose(self, num_tokens: int) -> str:
        """Return the shard with most room.

        Raises:
            NoReplica: none has room for so many tokens.
        """
        room = self._room()
        if not room or max(room.values()) < num_tokens:
            raise NoReplica(
                f"expected a context shard with room for {num_tokens} tokens more, found {len(room)} shards with less: "
                "add shards or raise context.kv_bytes",
                retry_after_ms=1000,
            )
        return max(room, key=lambda shard_id: (room[shard_id], shard_id))

    def _room(self) -> dict[str, int]:
        """Return the tokens that each shard has room for, what its segments will yet get taken off."""
        room = {shard_id: stream.free_tokens for shard_id, stream in self._ready().items()}
        for segments in self._live:
            for segment in segments.segments:
                if segment.shard_id in room:
                    written = 0 if segment.is_lost else max(segments.num_tokens - segment.start, 0)
                    room[segment.shard_id] -= max(segments.most_in(segment.start) - written, 0)
        return room

    def _oldest_wait(self) -> float | None:
        return min((each.lacking_since for each in self._live if each.lacking_since is not None), default=None)

    def _ready(self) -> dict[str, ShardStream]:
        return {shard_id: stream for shard_id, stream in self._streams.items() if stream.is_ready}

    def _notice(self) -> None:
        with self._changed:
            self._changed.notify_all()
