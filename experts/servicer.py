"""The replica's RPCs: Dispatch, Describe, Drain."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import grpc

from experts.replica import Replica
from experts.stream import DispatchStream, Send
from protos import errors
from protos.expert.v1 import expert_pb2, expert_pb2_grpc
from protos.traced import TellAnswer

# Taken off a Drain call's deadline, so that its answer arrives before it, in seconds.
_ANSWER_MARGIN_S = 0.1


class ExpertServicer(expert_pb2_grpc.ExpertServiceServicer):
    """Puts a replica behind herd.expert.v1.ExpertService.

    Args:
        replica: who computes.
        max_streams: Dispatch streams open at once; each has a thread.
        max_in_flight: dispatches of one stream accepted and not yet answered.
        trace: is told of answers to dispatches that name a span; None: nobody makes spans here.
    """

    def __init__(
        self, replica: Replica, *, max_streams: int, max_in_flight: int, trace: TellAnswer | None = None
    ) -> None:
        self._replica = replica
        self._max_streams = max_streams
        self._max_in_flight = max_in_flight
        self._trace = trace
        self._lock = threading.Lock()
        self._streams: set[DispatchStream] = set()

    @property
    def num_streams(self) -> int:
        """Dispatch streams open now."""
        return len(self._streams)

    def Dispatch(  # type: ignore[override]  # the third argument is what `experimental_non_blocking` adds
        self, requests: Iterator[expert_pb2.DispatchRequest], context: grpc.ServicerContext, send: Send
    ) -> None:
        """Serve one stream; with `experimental_non_blocking`, gRPC passes `send` instead of taking a generator.

        The same path as grpcio-health-checking's Watch. A generator can answer only from the thread that reads, so it
        could neither answer out of order nor end a stream that drains while it waits for the next dispatch; a second
        thread per stream could, for a fifth of the round trip (docs/wire.md).
        """
        stream = DispatchStream(self._replica, context, send, max_in_flight=self._max_in_flight, trace=self._trace)
        with self._lock:
            refusal = self._refusal()
            if refusal is None:
                self._streams.add(stream)
        if refusal is not None:
            context.set_trailing_metadata(refusal.trailing_metadata())
            context.abort(refusal.grpc_code, refusal.message)
        try:
            stream.serve(requests)
        finally:
            with self._lock:
                self._streams.discard(stream)

    Dispatch.experimental_non_blocking = True  # type: ignore[attr-defined]

    def Describe(
        self, request: expert_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> expert_pb2.DescribeResponse:
        """Tell what is held and how busy the replica is."""
        return self._replica.describe()

    def Drain(self, request: expert_pb2.DrainRequest, context: grpc.ServicerContext) -> expert_pb2.DrainResponse:
        """Drain until done or until just before the call's deadline."""
        left_s = context.time_remaining()
        remaining = self.drain(None if left_s is None else max(left_s - _ANSWER_MARGIN_S, 0))
        return expert_pb2.DrainResponse(drained=not remaining, remaining=remaining)

    def drain(self, timeout_s: float | None) -> int:
        """Accept nothing more, end each stream once its dispatches are answered; return those left unanswered."""
        give_up_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            self._replica.batcher.drain(0)
            streams = list(self._streams)
        return sum(
            stream.drain(None if give_up_s is None else max(give_up_s - time.monotonic(), 0)) for stream in streams
        )

    def _refusal(self) -> errors.ServingError | None:
        """Return why no stream may be opened now, if so."""
        if self._replica.batcher.is_draining:
            return errors.Draining(f"replica {self._replica.replica_id} drains: connect to another holder")
        if len(self._streams) >= self._max_streams:
            return errors.Overloaded(
                f"expected at most {self._max_streams} Dispatch streams, found as many open: close one or connect to "
                "another holder"
            )
        return None
