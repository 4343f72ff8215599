"""One persistent Dispatch stream to one expert replica: connect, send, match answers, break, reconnect."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import cached_property
from typing import NamedTuple

import grpc
import torch

from protos import errors
from protos.expert.v1 import expert_pb2, expert_pb2_grpc
from protos.tls import Identity
from router.placement import ExpertHolder
from router.transport.health import LaneInUse
from router.transport.offer import MemoryOffer
from router.transport.reconnecting import ReconnectingStream
from router.transport.slots import Slot, Slots

MOST_OWED_BYTES = 128 * 1024 * 1024
"""Most bytes of dispatches that a replica may owe answers to, forgotten ones included: while it does not read, they lie
in our memory, unsent. As much as two of the largest messages."""
MOST_OWED = 256
"""Most such dispatches."""


class Answered(NamedTuple):
    """A result, and when it came."""

    result: expert_pb2.DispatchResult
    at_s: float
    """Monotonic second."""


Answer = Future[Answered]
CPU = torch.device("cpu")
_NO_LANE = LaneInUse("inline", "the stream is not open")


class ReplicaStream(ReconnectingStream):
    """Keeps a stream to one replica open until closed.

    One thread reads answers and reconnects; gRPC's own thread sends. Sending never blocks: a stream that is not
    ready refuses, and the caller goes to another holder.

    Args:
        holder: whom to connect to.
        router_id: who we are, for the replica's logs.
        fingerprint: of our model; a replica of another model refuses us.
        on_change: called from the reading thread whenever the stream has opened or broken.
        shares_memory: offer the replica shared memory for tensors; without effect where it is on another host.
        device: where our tokens are: memory of a GPU is offered as well.
        stands_back: let the dispatches of other routers pass.
        identity: what to show and to believe; None: no encryption.
    """

    ended = "closed the stream: try another"

    def __init__(
        self,
        holder: ExpertHolder,
        *,
        router_id: str,
        fingerprint: str,
        on_change: Callable[[], None],
        shares_memory: bool = True,
        device: torch.device = CPU,
        stands_back: bool = False,
        identity: Identity | None = None,
    ) -> None:
        super().__init__(f"dispatch-{holder.replica_id}", identity)
        self.holder = holder
        self._hello = expert_pb2.Hello(router_id=router_id, model_fingerprint=fingerprint, stands_back=stands_back)
        self._on_change = on_change
        self._shares_memory = shares_memory
        self._device = device
        self._lock = threading.Lock()
        self._pending: dict[int, Answer] = {}
        self._slots: Slots | None = None
        self._lane = _NO_LANE
        self._lent: dict[int, Slot] = {}
        """Slots the replica may still write to: of dispatches not answered yet, forgotten ones included."""
        self._owed: dict[int, int] = {}
        """Bytes of the dispatches not answered yet, forgotten ones included."""
        self._owed_bytes = 0
        self.last_answer_at = 0.0
        """Monotonic second of the last answer to anything: a sign of life."""
        self._outbox: queue.SimpleQueue[expert_pb2.DispatchRequest | None] | None = None
        self._failure: errors.ServingError | None = None
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Tell whether a dispatch can be sent now."""
        return self._outbox is not None

    @property
    def num_pending(self) -> int:
        """Return the dispatches sent and not answered."""
        return len(self._pending)

    @property
    def num_owed(self) -> int:
        """Return the dispatches not answered yet, those forgotten included."""
        return len(self._owed)

    @property
    def slots(self) -> Slots | None:
        """Return the memory shared with the replica; None while it is not ready, or shares none."""
        return self._slots

    @property
    def lane(self) -> LaneInUse:
        """Return how tensors travel, those that are worth it and find room."""
        return self._lane

    @property
    def failure(self) -> errors.ServingError | None:
        """Return why the stream broke or did not open the last time; None while it is ready, or at first."""
        return None if self.is_ready else self._failure

    def take_slot(self, num_bytes: int) -> Slot | None:
        """Return a slot of memory shared with the replica, None if it shares none or there is no room."""
        slots = self.slots
        return None if slots is None else slots.take(num_bytes)

    def send(self, request: expert_pb2.DispatchRequest, num_bytes: int, slot: Slot | None = None) -> Answer:
        """Send a dispatch; the answer arrives in the future, as a result or a ServingError.

        Args:
            request: carries the dispatch; put into a request here, its tensor would be copied once more.
            num_bytes: of its tensor, if that is in the request; the message would be written once more to find out.
            slot: where its tensor lies, if not in the request; who sends it lets go of it.

        Raises:
            ReplicaUnavailable: the stream is not connected, or the replica owes as much as it may.
        """
        answer: Answer = Future()
        dispatch_id = request.dispatch.dispatch_id
        with self._lock:
            # A slot of a stream that broke meanwhile means nothing on the one that replaced it.
            if self._outbox is None or (slot is not None and slot.slots is not self._slots):
                raise errors.ReplicaUnavailable(f"replica {self.holder.replica_id} is not connected: try another")
            if self._owed and (len(self._owed) >= MOST_OWED or self._owed_bytes + num_bytes > MOST_OWED_BYTES):
                raise errors.ReplicaUnavailable(
                    f"expected replica {self.holder.replica_id} to owe less than {MOST_OWED} answers, found "
                    f"{len(self._owed)} to {self._owed_bytes} bytes: try another"
                )
            if slot is not None:
                slot.lend()
                self._lent[dispatch_id] = slot
            self._owed[dispatch_id] = num_bytes
            self._owed_bytes += num_bytes
            self._pending[dispatch_id] = answer
            self._outbox.put(request)
        return answer

    def forget(self, dispatch_id: int) -> None:
        """Drop whatever answer may still come; without effect if it came."""
        with self._lock:
            self._pending.pop(dispatch_id, None)

    def _session(self, channel: grpc.Channel) -> None:
        """Run one stream to its end: returns when the replica ended it, raises grpc.RpcError when it broke."""
        outbox: queue.SimpleQueue[expert_pb2.DispatchRequest | None] = queue.SimpleQueue()
        offer = MemoryOffer(self._device, is_on_this_host=self.is_on_this_host, shares_memory=self._shares_memory)
        request = expert_pb2.DispatchRequest(hello=self._hello)
        offer.write(request.hello)
        outbox.put(request)
        call = expert_pb2_grpc.ExpertServiceStub(channel).Dispatch(iter(outbox.get, None))
        self._call = call
        if self._closing.is_set():
            call.cancel()
        try:
            for response in call:
                if response.HasField("welcome"):
                    segment, lane = offer.taken(response.welcome, self.holder.replica_id)
                    self._open(outbox, None if segment is None else Slots(segment), lane)
                    del segment  # an error's traceback would keep it mapped
                else:
                    self._receive(response)
        finally:
            outbox.put(None)
            call.cancel()
            offer.end()

    def _open(
        self, outbox: queue.SimpleQueue[expert_pb2.DispatchRequest | None], slots: Slots | None, lane: LaneInUse
    ) -> None:
        """Let dispatches be sent."""
        with self._lock:
            self._outbox, self._slots, self._lane = outbox, slots, lane
        self._on_change()

    def _receive(self, response: expert_pb2.DispatchResponse) -> None:
        kind = response.WhichOneof("message")
        if kind == "result":
            self._take(response.result.dispatch_id, response.result)
        elif kind == "error":
            self._take(response.error.dispatch_id, errors.from_detail(response.error.detail))

    def _take(self, dispatch_id: int, answer: expert_pb2.DispatchResult | errors.ServingError) -> None:
        now = time.monotonic()
        with self._lock:
            self.last_answer_at = now
            future = self._pending.pop(dispatch_id, None)
            slot = self._lent.pop(dispatch_id, None)
            self._owed_bytes -= self._owed.pop(dispatch_id, 0)
        if slot is not None:
            slot.answered()
        if future is None:
            return  # forgotten meanwhile
        if isinstance(answer, errors.ServingError):
            future.set_exception(answer)
        else:
            future.set_result(Answered(answer, now))

    def _break(self, failure: errors.ServingError) -> bool:
        """Fail what is pending; tell whether the stream had been usable."""
        with self._lock:
            was_ready = self._outbox is not None
            pending, self._pending, self._outbox, self._call = self._pending, {}, None, None
            self._slots, self._lent, self._lane = None, {}, _NO_LANE
            self._owed, self._owed_bytes = {}, 0
            self._failure = failure
        if was_ready:
            self._on_change()
        for future in pending.values():
            future.set_exception(failure)
        return was_ready

    @cached_property
    def is_on_this_host(self) -> bool:
        """Tell whether the replica computes on the cores that we do."""
        return self.holder.host == socket.gethostname()

    @cached_property
    def crosses_network(self) -> bool:
        """Tell whether dispatches go by TCP rather than by a socket of this host."""
        return not self._target().startswith("unix:")

    @property
    def peer(self) -> str:
        """Return how messages call the replica."""
        return f"expert replica {self.holder.replica_id} at {self.holder.address}"

    def _explain(self, error: grpc.RpcError) -> errors.ServingError:
        return _as_retryable(super()._explain(error))

    def _target(self) -> str:
        """Prefer the Unix socket on our own host: it saves the TCP stack twice per dispatch."""
        if self.holder.unix_address and self.is_on_this_host:
            return self.holder.unix_address
        return self.holder.address


def _as_retryable(error: errors.ServingError) -> errors.ServingError:
    """Say in a replica's own words, or our own if we ended the stream, that another replica may stand in."""
    return error if error.retryable else errors.ReplicaUnavailable(error.message)
