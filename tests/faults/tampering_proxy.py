"""A gRPC proxy between a router and an expert replica that harms single messages, by a plan.

It carries every bidirectional stream as bytes, whatever they mean. A stream's first message each way, hello and
welcome, is always carried as it is: what goes wrong there ends a stream that was never used.

    router  -- dispatches -->  proxy  -- dispatches, harmed -->  replica
            <-- answers, harmed --    <-- answers --
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from enum import Enum

import grpc

from protos.channel import channel_options, server_options

_METHOD = "/herd.expert.v1.ExpertService/Dispatch"
_LONGEST_HELD_S = 0.05


class Way(Enum):
    """Which way a message goes."""

    DISPATCH = "dispatch"
    """From router to replica."""
    ANSWER = "answer"
    """From replica to router."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The message never arrives."""


@dataclass(frozen=True, slots=True)
class Delay:
    """The message arrives later; those behind it do not wait for it."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The message arrives twice."""


@dataclass(frozen=True, slots=True)
class Reorder:
    """The message arrives after the one behind it, or after a moment if there is none."""


@dataclass(frozen=True, slots=True)
class Corrupt:
    """A bit of each of four neighbouring bytes is flipped: in a float32 tensor, one is an exponent's."""

    place: float
    """Where: 0 is the message's beginning, 1 its end. In between lies the tensor."""


Harm = Drop | Delay | Duplicate | Reorder | Corrupt
Plan = Callable[[Way, int], Harm | None]
"""(which way, how many messages went that way before it, over all streams) -> what is done to a message."""


class TamperingProxy:
    """Context manager: listens on a free port.

    Args:
        server_address: host:port of the replica.
        plan: called for each message, from several threads.
    """

    def __init__(self, server_address: str, plan: Plan) -> None:
        self._server_address = server_address
        self._plan = plan
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(Way, 0)
        self.num_harmed = 0
        """Messages that something was done to."""
        handler = grpc.stream_stream_rpc_method_handler(self._carry)
        service, method = _METHOD[1:].split("/")
        self._server = grpc.server(futures.ThreadPoolExecutor(16), options=server_options())
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> TamperingProxy:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()

    def _carry(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Carry one stream; it ends as the replica ends it, or when the router goes."""
        with grpc.insecure_channel(self._server_address, options=channel_options()) as channel:
            dispatches = _Lane(lambda: self._next_harm(Way.DISPATCH))
            call = channel.stream_stream(_METHOD)(iter(dispatches))
            context.add_callback(call.cancel)
            context.add_callback(dispatches.end)
            dispatches.fill_from(requests)
            answers = _Lane(lambda: self._next_harm(Way.ANSWER))
            answers.fill_from(call)
            yield from answers
            if context.is_active() and call.code() is not grpc.StatusCode.OK:
                context.set_trailing_metadata(call.trailing_metadata() or ())
                context.abort(call.code(), call.details())

    def _next_harm(self, way: Way) -> Harm | None:
        with self._lock:
            harm = self._plan(way, self._counts[way])
            self._counts[way] += 1
            self.num_harmed += harm is not None
            return harm


class _Lane:
    """Messages of one stream one way: a thread takes them from their source, whoever iterates gets what arrives."""

    def __init__(self, next_harm: Callable[[], Harm | None]) -> None:
        self._next_harm = next_harm
        self._arrived: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._held: bytes | None = None

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._arrived.get, None)

    def fill_from(self, source: Iterator[bytes]) -> None:
        threading.Thread(target=self._fill, args=(source,), name="tampering", daemon=True).start()

    def end(self) -> None:
        self._arrived.put(None)

    def _fill(self, source: Iterator[bytes]) -> None:
        try:
            for number, message in enumerate(source):
                self._pass(message, self._next_harm() if number else None)
        except grpc.RpcError:
            pass  # the other side has gone; whoever reads the call's status finds out why
        finally:
            self.release()
            self.end()

    def _pass(self, message: bytes, harm: Harm | None) -> None:
        match harm:
            case Drop():
                return
            case Delay(seconds):
                _later(seconds, lambda: self._arrived.put(message))
                return
            case Reorder():
                self.release()
                with self._lock:
                    self._held = message
                _later(_LONGEST_HELD_S, self.release)
                return
            case Duplicate():
                self._arrived.put(message)
            case Corrupt(place):
                message = _flip_bits(message, place)
        self._arrived.put(message)
        self.release()

    def release(self) -> None:
        """Let the message that was held back arrive."""
        with self._lock:
            held, self._held = self._held, None
            if held is not None:
                self._arrived.put(held)


def _later(seconds: float, call: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()


def _flip_bits(message: bytes, place: float) -> bytes:
    flipped = bytearray(message)
    start = int(place * max(len(flipped) - 4, 0))
    for index in range(start, min(start + 4, len(flipped))):
        flipped[index] ^= 0x40
    return bytes(flipped)
