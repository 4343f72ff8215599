"""Hands out held experts to replicas that start: herd.weights.v1.WeightsService."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import grpc
from torch import Tensor

from experts.replica import Replica
from experts.weight_wire import CHUNK_BYTES, MATRICES, bytes_of, checksum, element_of
from models.linear import Int8Weight
from models.linear.unpacked import unpacked
from models.llama4.mlp import Mlp
from protos import errors
from protos.weights.v1 import weights_pb2, weights_pb2_grpc

_RETRY_AFTER_MS = 200
# How long a chunk waits for dispatches, in seconds: looks that often, and goes on all the same after that.
_LOOK_EVERY_S = 0.001
_PATIENCE_S = 0.02
# A replica that computed something in the last so many seconds has routers that wait for it: a pause after each chunk
# leaves the processor and Python's lock to most of them.
_BUSY_S, _PAUSE_S = 0.1, 0.002


class WeightsServicer(weights_pb2_grpc.WeightsServiceServicer):
    """Puts a replica's weights behind herd.weights.v1.WeightsService.

    Args:
        replica: who holds them.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._fetching = threading.Lock()
        self._num_batches = 0
        self._busy_until_s = 0.0

    def Fetch(
        self, request: weights_pb2.FetchRequest, context: grpc.ServicerContext
    ) -> Iterator[weights_pb2.FetchResponse]:
        """Send one expert, matrix by matrix."""
        try:
            if not self._fetching.acquire(blocking=False):
                raise errors.Overloaded(
                    "expected one fetch at a time, found another one under way: try again or another holder",
                    retry_after_ms=_RETRY_AFTER_MS,
                )
            try:
                yield from self._send(request)
            finally:
                self._fetching.release()
        except errors.ServingError as error:
            context.set_trailing_metadata(error.trailing_metadata())
            context.abort(error.grpc_code, error.message)

    def _send(self, request: weights_pb2.FetchRequest) -> Iterator[weights_pb2.FetchResponse]:
        self._check(request)
        by_layer = self._replica.held.held_expert(request.expert_id)
        for layer, mlp in by_layer.items():
            if layer < request.first_layer:
                continue
            for matrix, weight in zip(MATRICES, _unpacked(mlp), strict=True):
                header = weights_pb2.MatrixHeader(layer=layer, matrix=matrix, element=request.element)
                yield from self._send_matrix(header, weight)

    def _check(self, request: weights_pb2.FetchRequest) -> None:
        held = self._replica.held
        if request.model_fingerprint != held.fingerprint:
            raise errors.ModelMismatch(
                f"model_fingerprint: expected {held.fingerprint}, the model of replica {self._replica.replica_id}, "
                f"found {request.model_fingerprint or 'none'}: fetch from a replica of the same checkpoint"
            )
        expected = element_of(held.dtype, held.quantize), element_of(held.dtype)
        if (request.element, request.tokens) != expected:
            raise errors.BadConfig(
                f"element, tokens: expected {_names(*expected)}, as this replica holds weights, found "
                f"{_names(request.element, request.tokens)}: fetch elsewhere or read the files"
            )

    def _send_matrix(
        self, header: weights_pb2.MatrixHeader, weight: Tensor | Int8Weight
    ) -> Iterator[weights_pb2.FetchResponse]:
        rows_OI = weight.codes_OI if isinstance(weight, Int8Weight) else weight.contiguous()
        header.num_rows, header.num_columns = rows_OI.shape
        if isinstance(weight, Int8Weight):
            header.scales = bytes(bytes_of(weight.scale_O))
            header.scales_crc32 = checksum(header.scales)
        yield weights_pb2.FetchResponse(header=header)
        data = bytes_of(rows_OI)
        for offset in range(0, len(data), CHUNK_BYTES):
            part = bytes(data[offset : offset + CHUNK_BYTES])
            self._let_dispatches_pass()
            yield weights_pb2.FetchResponse(
                chunk=weights_pb2.MatrixChunk(offset=offset, data=part, crc32=checksum(part))
            )

    def _let_dispatches_pass(self) -> None:
        """Wait for a moment in which nothing computes, not for ever; longer where something has just computed."""
        began = time.monotonic()
        if self._num_batches != self._replica.num_batches:
            self._num_batches, self._busy_until_s = self._replica.num_batches, began + _BUSY_S
        if began < self._busy_until_s:
            time.sleep(_PAUSE_S)
        while self._replica.batcher.num_unfinished and time.monotonic() < began + _PATIENCE_S:
            time.sleep(_LOOK_EVERY_S)


def _unpacked(mlp: Mlp) -> tuple[Tensor | Int8Weight, Tensor | Int8Weight]:
    gate_up, down = unpacked(mlp.gate_up), unpacked(mlp.down)
    if gate_up is None or down is None:
        raise errors.BadConfig(
            "expected weights in a form that can be sent, found one that this processor needs and that does not give "
            "them back: read them from files"
        )
    return gate_up, down


def _names(*elements: weights_pb2.Element) -> str:
    by_number = weights_pb2.DESCRIPTOR.enum_types_by_name["Element"].values_by_number
    return " and ".join(by_number[each].name if each in by_number else str(each) for each in elements)
