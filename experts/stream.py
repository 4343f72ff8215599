"""One Dispatch stream: reads dispatches, has them computed, answers each exactly once.

Two threads at most:

    reading     the gRPC handler's own. What it can compute at once it also answers, so an uncontended dispatch
                changes threads nowhere (docs/wire.md has what a change costs).
    sending     started by the first dispatch that has to wait. It answers those, so that a router that does not read
                its answers holds up its own stream and never the compute thread.

The stream ends when the router half-closes or breaks the protocol, after the last answer; when the replica drains;
or when the router goes away, and then what was in flight is computed for nobody.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import grpc
from torch import Tensor

from experts.attach import attach
from experts.inbound import read_dispatch
from experts.replica import Replica
from experts.seen_ids import SeenIds
from experts.work import Outcome
from protos import errors
from protos.checksum import result_checksum
from protos.codec import write_tensor
from protos.expert.v1 import expert_pb2
from protos.segment import Segment, write_shared
from protos.tensor.v1 import tensor_pb2
from protos.traced import TellAnswer, TracedAnswer

_LOG = logging.getLogger(__name__)
_MAX_ROUTER_ID_BYTES = 128

Send = Callable[[expert_pb2.DispatchResponse | None], None]
"""Sends one message and returns when gRPC has taken it; None ends the stream. For one caller at a time."""


class _AnswerTo(NamedTuple):
    """Where an answer goes."""

    dispatch_id: int
    shared_offset: int
    """Where the tokens lie in shared memory, and the outputs shall; 0: they came in the message."""
    has_checksum: bool
    """True if the dispatch had one: then the result gets one."""
    traced: _Traced | None
    """What to tell of it once it is answered; None: it is not traced."""


class _Traced(NamedTuple):
    """A dispatch that names a span."""

    traceparent: str
    layer: int
    num_tokens: int
    arrived_s: float
    """On the batcher's clock."""


class DispatchStream:
    """A stream from its first message to its end.

    Args:
        replica: who computes.
        context: of the call.
        send: sends to the router.
        max_in_flight: dispatches of this stream accepted and not yet answered; at that many, reading pauses.
        trace: is told of answers to dispatches that name a span; None: nobody makes spans here.
    """

    def __init__(
        self,
        replica: Replica,
        context: grpc.ServicerContext,
        send: Send,
        *,
        max_in_flight: int,
        trace: TellAnswer | None = None,
    ) -> None:
        self._replica = replica
        self._context = context
        self._send = send
        self._max_in_flight = max_in_flight
        self._trace = trace
        self._changed = threading.Condition()
        self._in_flight = 0
        self._sending = threading.Lock()
        self._has_ended = False
        self._outbox: queue.SimpleQueue[tuple[_AnswerTo, Outcome] | None] = queue.SimpleQueue()
        self._sender: threading.Thread | None = None
        self._router_id = ""
        self._segment: Segment | None = None
        self._stands_back = False
        self._seen = SeenIds()

    def serve(self, requests: Iterator[expert_pb2.DispatchRequest]) -> None:
        """Run the stream; returns when it has ended or the router is gone."""
        failure: errors.ServingError | None = None
        # Wakes whoever waits here for answers to a router that is gone.
        self._context.add_callback(self._mark_ended)
        try:
            self._greet(next(requests, expert_pb2.DispatchRequest()))
            for request in requests:
                self._take(request)
        except errors.ServingError as error:
            failure = error
        except grpc.RpcError:
            self._mark_ended()
            _LOG.info("router %s went away with %d dispatches in flight", self._router_id, self._in_flight)
        except Exception as error:  # noqa: BLE001 the process boundary: a bug ends this stream and no other
            _LOG.exception("stream of router %s failed", self._router_id)
            failure = errors.InternalError(f"serving the stream failed: {type(error).__name__}: {error}")
        self._wait_answered(None)
        self._end(failure)
        if self._sender is not None:
            self._outbox.put(None)
            self._sender.join()
        # gRPC may keep the stream for as long as it likes; what is still computed here has a view of its own.
        self._segment = None

    def drain(self, timeout_s: float | None) -> int:
        """End the stream once all is answered; return the dispatches still unanswered when time is up."""
        remaining = self._wait_answered(timeout_s)
        if not remaining:
            self._end(errors.Draining(f"replica {self._replica.replica_id} drains: send to another holder"))
        return remaining

    def _greet(self, request: expert_pb2.DispatchRequest) -> None:
        """Answer the first message."""
        if request.WhichOneof("message") != "hello":
            raise errors.BadDispatch(
                "expected hello as the stream's first message, found none: send it before all else"
            )
        hello = request.hello
        if len(hello.router_id.encode()) > _MAX_ROUTER_ID_BYTES:
            raise errors.BadDispatch(
                f"router_id: expected at most {_MAX_ROUTER_ID_BYTES} bytes, found {len(hello.router_id.encode())}"
            )
        expected = self._replica.held.fingerprint
        if hello.model_fingerprint != expected:
            raise errors.ModelMismatch(
                f"model_fingerprint: expected {expected}, the model of replica {self._replica.replica_id}, found "
                f"{hello.model_fingerprint or 'none'}: start router and replica with the same checkpoint",
                metadata={"expected": expected, "found": hello.model_fingerprint},
            )
        self._router_id = hello.router_id
        self._stands_back = hello.stands_back
        welcome = expert_pb2.Welcome(replica=self._replica.describe())
        self._segment = attach(hello, welcome, self._replica.held.device)
        self._send_one(expert_pb2.DispatchResponse(welcome=welcome))

    def _take(self, request: expert_pb2.DispatchRequest) -> None:
        """Answer a dispatch, or have it answered once it is computed."""
        arrived_s = self._replica.batcher.now()
        if request.WhichOneof("message") != "dispatch":
            raise errors.BadDispatch(
                "expected dispatch as every message after the first, found another: send hello once"
            )
        dispatch = request.dispatch
        dispatch_id = dispatch.dispatch_id
        if self._seen.knows(dispatch_id):
            return  # doubled on its way: its memory may be somebody else's by now, and one answer is enough
        with self._changed:
            self._changed.wait_for(lambda: self._in_flight < self._max_in_flight or self._has_ended)
            self._in_flight += 1
        traced = None if self._trace is None else _traced(dispatch, arrived_s)
        answer_to = _AnswerTo(dispatch_id, dispatch.hidden.shared.offset, dispatch.HasField("checksum"), traced)
        deliver = partial(self._deliver, answer_to)
        outcome: Outcome | None
        try:
            work = read_dispatch(
                dispatch,
                self._replica.held,
                arrived_s=arrived_s,
                deliver=deliver,
                segment=self._segment,
                stands_back=self._stands_back,
            )
            outcome = self._replica.batcher.submit(work)
        except errors.ServingError as error:
            outcome = Outcome(error=error)
        if outcome is not None:
            self._answer(answer_to, outcome)
        elif self._sender is None:
            self._sender = threading.Thread(target=self._answer_waiting, name="experts-answers", daemon=True)
            self._sender.start()

    def _deliver(self, answer_to: _AnswerTo, outcome: Outcome) -> None:
        """Take an outcome from the compute thread, which must not wait for the network."""
        self._outbox.put((answer_to, outcome))

    def _answer_waiting(self) -> None:
        """Answer what had to wait: the sending thread's life."""
        while (item := self._outbox.get()) is not None:
            self._answer(*item)

    def _answer(self, answer_to: _AnswerTo, outcome: Outcome) -> None:
        self._send_one(self._response(answer_to, outcome))
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()
        if answer_to.traced is not None:
            self._tell(answer_to.traced, outcome)

    def _tell(self, traced: _Traced, outcome: Outcome) -> None:
        assert self._trace is not None
        self._trace(
            TracedAnswer(
                traceparent=traced.traceparent,
                layer=traced.layer,
                num_tokens=traced.num_tokens,
                seconds=self._replica.batcher.now() - traced.arrived_s,
                queue_s=outcome.queue_us * 1e-6,
                compute_s=outcome.compute_us * 1e-6,
                error=outcome.error,
            )
        )

    def _response(self, answer_to: _AnswerTo, outcome: Outcome) -> expert_pb2.DispatchResponse:
        """Return an answer's message, made in place: assembling it from parts would copy the outputs each time."""
        response = expert_pb2.DispatchResponse()
        if outcome.error is not None or outcome.outputs_ND is None:
            error = outcome.error or errors.InternalError("a dispatch ended without outputs and without an error")
            response.error.dispatch_id = answer_to.dispatch_id
            response.error.code = error.grpc_code.value[0]
            response.error.detail.CopyFrom(error.detail())
            return response
        result = response.result
        result.dispatch_id = answer_to.dispatch_id
        self._write_outputs(result.hidden, outcome.outputs_ND, answer_to.shared_offset)
        result.queue_us = outcome.queue_us
        result.compute_us = outcome.compute_us
        result.load.queued_tokens = self._replica.batcher.queued_tokens
        result.load.total_tokens = self._replica.batcher.total_tokens
        if answer_to.has_checksum:
            result.checksum = result_checksum(result)
        return response

    def _write_outputs(self, wire: tensor_pb2.Tensor, outputs_ND: Tensor, shared_offset: int) -> None:
        segment = self._segment
        if segment is None or not shared_offset:
            write_tensor(wire, outputs_ND)
            return
        segment.tensor(shared_offset, outputs_ND.dtype, outputs_ND.shape).copy_(outputs_ND)
        segment.settle()
        write_shared(wire, outputs_ND, shared_offset)

    def _send_one(self, response: expert_pb2.DispatchResponse) -> None:
        with self._sending:
            if not self._has_ended:
                self._send(response)

    def _wait_answered(self, timeout_s: float | None) -> int:
        """Wait until nothing is in flight; return what still is when time is up."""
        with self._changed:
            self._changed.wait_for(lambda: not self._in_flight or self._has_ended, timeout_s)
            return 0 if self._has_ended else self._in_flight

    def _end(self, failure: errors.ServingError | None) -> None:
        """End the stream, with the failure's status if there is one. Idempotent."""
        with self._sending:
            if self._has_ended:
                return
            self._mark_ended()
            if failure is not None:
                self._context.set_code(failure.grpc_code)
                self._context.set_details(failure.message)
                self._context.set_trailing_metadata(failure.trailing_metadata())
            self._send(None)

    def _mark_ended(self) -> None:
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()


def _traced(dispatch: expert_pb2.Dispatch, arrived_s: float) -> _Traced | None:
    """Return what to tell of a dispatch, None if it names no span."""
    if not dispatch.traceparent:
        return None
    return _Traced(dispatch.traceparent, dispatch.layer, sum(dispatch.token_counts), arrived_s)
