"""One persistent Attend stream to one context shard: connect, send, match answers, break, reconnect."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import grpc

from protos import errors
from protos.context.v1 import context_pb2, context_pb2_grpc
from protos.tls import Identity
from router.transport.reconnecting import ReconnectingStream

Answer = Future[context_pb2.StepResult]
_Outbox = queue.SimpleQueue["context_pb2.AttendRequest | None"]


@dataclass(frozen=True, slots=True)
class ShardHolder:
    """A context shard, as the directory tells of it."""

    shard_id: str
    """Unique in the cluster, new after every restart."""
    address: str
    """host:port."""


class ShardStream(ReconnectingStream):
    """Keeps a stream to one shard open until closed.

    One thread reads answers and reconnects; gRPC's own thread sends. Sending never blocks.

    Args:
        holder: whom to connect to.
        router_id: who owns the segments.
        fingerprint: of our model; a shard of another model refuses us.
        on_change: called from the reading thread whenever the stream has opened or broken.
        identity: what to show and to believe; None: no encryption.
    """

    def __init__(
        self,
        holder: ShardHolder,
        *,
        router_id: str,
        fingerprint: str,
        on_change: Callable[[], None],
        identity: Identity | None = None,
    ) -> None:
        self.holder = holder
        self.total_tokens = 0
        """What it holds at most; 0 until it has answered."""
        self.free_tokens = 0
        """Of them, those that were free at its last answer."""
        self.num_sessions = 0
        """How often the stream has opened."""
        self.segment_ids: frozenset[int] = frozenset()
        """Our segments that it had when the stream opened the last time."""
        self.failure: errors.ServingError | None = None
        """Why the stream broke or did not open the last time; None at first."""
        super().__init__(f"context-{holder.shard_id}", identity)
        self._hello = context_pb2.Hello(router_id=router_id, model_fingerprint=fingerprint)
        self._on_change = on_change
        self._lock = threading.Lock()
        self._pending: dict[int, Answer] = {}
        self._outbox: _Outbox | None = None
        self._to_release: set[int] = set()
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Tell whether a step can be sent now."""
        return self._outbox is not None

    def send(self, step: context_pb2.Step) -> Answer:
        """Send a step; the answer arrives in the future, as a result or a ServingError.

        Raises:
            ReplicaUnavailable: the stream is not connected.
        """
        answer: Answer = Future()
        with self._lock:
            if self._outbox is None:
                raise errors.ReplicaUnavailable(f"{self.peer} is not connected: its segments wait, or are lost")
            self._pending[step.step_id] = answer
            self._outbox.put(context_pb2.AttendRequest(step=step))
        return answer

    def forget(self, step_id: int) -> None:
        """Drop whatever answer may still come."""
        with self._lock:
            self._pending.pop(step_id, None)

    def release(self, segment_ids: Sequence[int] = ()) -> None:
        """Drop segments, and ask for the room there is then; while disconnected, once the stream is open again."""
        with self._lock:
            if self._outbox is None:
                self._to_release.update(segment_ids)
            else:
                self._outbox.put(context_pb2.AttendRequest(release=context_pb2.Release(segment_ids=segment_ids)))

    @property
    def peer(self) -> str:
        """Return how messages call the shard."""
        return f"context shard {self.holder.shard_id} at {self.holder.address}"

    def _target(self) -> str:
        return self.holder.address

    def _session(self, channel: grpc.Channel) -> None:
        """Run one stream to its end: returns when the shard ended it, raises grpc.RpcError when it broke."""
        outbox: _Outbox = queue.SimpleQueue()
        outbox.put(context_pb2.AttendRequest(hello=self._hello))
        call = context_pb2_grpc.ContextServiceStub(channel).Attend(iter(outbox.get, None))
        self._call = call
        if self._closing.is_set():
            call.cancel()
        try:
            for response in call:
                if response.HasField("welcome"):
                    self._open(outbox, response.welcome)
                else:
                    self._receive(response)
        finally:
            outbox.put(None)
            call.cancel()

    def _open(self, outbox: _Outbox, welcome: context_pb2.Welcome) -> None:
        """Let steps be sent."""
        with self._lock:
            self.total_tokens, self.free_tokens = welcome.shard.total_tokens, welcome.shard.free_tokens
            self.segment_ids = frozenset(welcome.segment_ids)
            self.num_sessions += 1
            if left := sorted(self._to_release):
                outbox.put(context_pb2.AttendRequest(release=context_pb2.Release(segment_ids=left)))
            self._to_release.clear()
            self._outbox = outbox
        self._on_change()

    def _receive(self, response: context_pb2.AttendResponse) -> None:
        kind = response.WhichOneof("message")
        if kind == "room":
            self.free_tokens = response.room.free_tokens
        elif kind == "result":
            result = response.result
            self.free_tokens = result.free_tokens
            if (answer := self._take(result.step_id)) is not None:
                answer.set_result(result)
        elif (answer := self._take(response.error.step_id)) is not None:
            answer.set_exception(errors.from_detail(response.error.detail))

    def _take(self, step_id: int) -> Answer | None:
        with self._lock:
            return self._pending.pop(step_id, None)

    def _break(self, failure: errors.ServingError) -> bool:
        """Fail what is pending; tell whether the stream had been usable."""
        with self._lock:
            was_ready = self._outbox is not None
            pending, self._pending, self._outbox, self._call = self._pending, {}, None, None
            self.failure = failure
        self._on_change()
        for answer in pending.values():
            answer.set_exception(failure)
        return was_ready
