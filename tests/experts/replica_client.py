"""A router reduced to its stream: sends what a test wants sent, sound or not, and waits for answers."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Mapping

import grpc
import torch
from torch import Tensor

from protos.channel import channel_options
from protos.codec import decode_tensor, encode_tensor
from protos.expert.v1 import expert_pb2, expert_pb2_grpc

WAIT_S = 30
_IDS = itertools.count(1_000_000)


def dispatch_of(
    hidden_ND: Tensor,
    counts: Mapping[int, int],
    *,
    dispatch_id: int | None = None,
    layer: int = 1,
    deadline_ms: int = 0,
) -> expert_pb2.Dispatch:
    """Return a dispatch as a router makes it, with an id of its own unless one is given."""
    return expert_pb2.Dispatch(
        dispatch_id=next(_IDS) if dispatch_id is None else dispatch_id,
        layer=layer,
        expert_ids=counts.keys(),
        token_counts=counts.values(),
        hidden=encode_tensor(hidden_ND),
        deadline_ms=deadline_ms,
    )


def outputs_of(response: expert_pb2.DispatchResponse, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return an answer's outputs; fails if it is an error."""
    assert response.WhichOneof("message") == "result", response
    return decode_tensor(response.result.hidden, dtype=dtype, shape=(None, None))


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a state that only shows from outside; look every few milliseconds."""
    pause = threading.Event()
    for _ in range(WAIT_S * 200):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it never came to that")


class StreamClient:
    """One channel with one Dispatch stream on it.

    Args:
        address: host:port or unix:PATH.
        hello: the first message; None sends none.
    """

    def __init__(self, address: str, hello: expert_pb2.Hello | None) -> None:
        self.channel = grpc.insecure_channel(address, options=channel_options())
        self.stub = expert_pb2_grpc.ExpertServiceStub(self.channel)
        self._outbox: queue.SimpleQueue[expert_pb2.DispatchRequest | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[expert_pb2.DispatchResponse | grpc.RpcError | None] = queue.SimpleQueue()
        if hello is not None:
            self._outbox.put(expert_pb2.DispatchRequest(hello=hello))
        self.call = self.stub.Dispatch(iter(self._outbox.get, None))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            for response in self.call:
                self._answers.put(response)
        except grpc.RpcError as error:
            self._answers.put(error)
        else:
            self._answers.put(None)

    def send(self, dispatch: expert_pb2.Dispatch) -> None:
        self._outbox.put(expert_pb2.DispatchRequest(dispatch=dispatch))

    def send_raw(self, request: expert_pb2.DispatchRequest) -> None:
        self._outbox.put(request)

    def half_close(self) -> None:
        self._outbox.put(None)

    def next(self) -> expert_pb2.DispatchResponse:
        """Return the next answer."""
        answer = self._answers.get(timeout=WAIT_S)
        assert isinstance(answer, expert_pb2.DispatchResponse), answer
        return answer

    def rest(self) -> Iterator[expert_pb2.DispatchResponse]:
        """Yield answers until the stream ends."""
        while isinstance(answer := self._answers.get(timeout=WAIT_S), expert_pb2.DispatchResponse):
            yield answer
        self._answers.put(answer)

    def end(self) -> grpc.RpcError | None:
        """Return how the stream ended: None for OK."""
        answer = self._answers.get(timeout=WAIT_S)
        assert not isinstance(answer, expert_pb2.DispatchResponse), answer
        return answer

    def ask(self, dispatch: expert_pb2.Dispatch) -> expert_pb2.DispatchResponse:
        self.send(dispatch)
        return self.next()

    def close(self) -> None:
        self._outbox.put(None)
        self.call.cancel()
        self.channel.close()
        self._reader.join(WAIT_S)
