"""Expert weights from a live replica, for when the files are far; from the files where that fails."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import grpc
import torch
from torch import Tensor

from experts.source import ExpertSource
from experts.weight_wire import MATRICES, STORED_DTYPES, bytes_of, checksum, element_of
from models.arena import Arena
from models.checkpoint.tensor_shapes import expert_names
from models.config import ModelConfig
from models.linear import Int8Weight, Quantization, Rounded
from protos.channel import open_channel
from protos.errors import BadTensor, Overloaded, ServingError, from_rpc_error
from protos.tls import Identity
from protos.weights.v1 import weights_pb2, weights_pb2_grpc

_LOG = logging.getLogger(__name__)
# Longest fetch of an expert, in seconds, and what it may take for each byte besides: slower than any network.
_FETCH_S, _FETCH_S_PER_BYTE = 5.0, 1 / 20e6
# How long to ask again a peer that serves another fetch, in seconds.
_PATIENCE_S = 30.0

_Matrix = Tensor | Int8Weight


class PeerSource:
    """Reads experts from a replica that holds them, the rest and what fails from files. For several threads.

    An expert is fetched as a whole when its first matrix is wanted, and kept until its last one was read. Once a fetch
    has failed, files are read from then on.

    Args:
        address: the peer's, host:port or unix:PATH.
        files: the checkpoint, opened here: what is fetched has to belong to the same model.
        dtype: what weights will be held in.
        quantize: how they will be rounded; None: not at all.
        identity: what to show and to believe; None: no encryption.
    """

    def __init__(
        self,
        address: str,
        files: ExpertSource,
        dtype: torch.dtype,
        quantize: Quantization | None = None,
        identity: Identity | None = None,
    ) -> None:
        self._identity = identity
        self.config: ModelConfig = files.config
        self.fingerprint = files.fingerprint
        self.fetched_bytes = 0
        """Bytes of weights that came from the peer."""
        self.address = address
        """The peer's."""
        self._files = files
        self._dtype = dtype
        self._quantize = quantize
        self._expert_of = {
            name: expert
            for layer in self.config.moe_layers
            for expert in range(self.config.num_experts)
            for name in expert_names(layer, expert)
        }
        self._fetched: dict[str, _Matrix] = {}
        self._memory = Arena()
        self._fetching = threading.Lock()
        self._is_given_up = False

    @property
    def is_given_up(self) -> bool:
        """Tell whether a fetch failed, so that files are read from then on."""
        return self._is_given_up

    @property
    def bytes_read(self) -> int:
        """Bytes read so far, from the peer and from files."""
        return self.fetched_bytes + self._files.bytes_read

    def num_bytes(self, name: str) -> int:
        """Return the bytes of a tensor as it is stored in files; a peer may send fewer or more."""
        return self._files.num_bytes(name)

    def read(self, name: str, dtype: torch.dtype | None = None, memory: Arena | None = None) -> Tensor | Rounded:
        """Return one matrix: from the peer by rows, transposed or already rounded; else as the files have it."""
        with self._fetching:
            if name not in self._fetched and not self._is_given_up:
                self._fetch(self._expert_of[name])
            found = self._fetched.pop(name, None)
            if found is not None:
                return _copy(found, memory or Arena())  # before the next fetch overwrites it
        return self._files.read(name, dtype, memory)

    def _fetch(self, expert: int) -> None:
        """Fetch an expert; keep the layers that came whole, and give the peer up if some did not."""
        try:
            request = weights_pb2.FetchRequest(
                model_fingerprint=self.fingerprint,
                expert_id=expert,
                element=element_of(self._dtype, self._quantize),
                tokens=element_of(self._dtype),
            )
            with open_channel(self.address, self._identity) as channel:
                self._receive(weights_pb2_grpc.WeightsServiceStub(channel), request)
        except ServingError as error:
            self._is_given_up = True
            _LOG.warning(
                "expert %d: reading files from here on, because fetching it from %s failed: %s",
                expert,
                self.address,
                error.message,
            )

    def _receive(self, stub: weights_pb2_grpc.WeightsServiceStub, request: weights_pb2.FetchRequest) -> None:
        num_weights = 3 * self.config.hidden_size * self.config.expert_width * len(self.config.moe_layers)
        timeout_s = _FETCH_S + num_weights * self._dtype.itemsize * _FETCH_S_PER_BYTE
        give_up_at = time.monotonic() + _PATIENCE_S
        while True:
            if self._fetched:  # another thread is yet to read the rest of the expert before
                self._memory = Arena()
            self._memory.clear()
            try:
                self._take(iter(stub.Fetch(request, timeout=timeout_s)), request)
            except grpc.RpcError as failure:
                error = from_rpc_error(failure, self.address)
                if not isinstance(error, Overloaded) or time.monotonic() > give_up_at:
                    raise error from failure
                time.sleep(max(error.retry_after_ms, 10) / 1000)
            else:
                return

    def _take(self, responses: Iterator[weights_pb2.FetchResponse], request: weights_pb2.FetchRequest) -> None:
        for layer in self.config.moe_layers:
            pair = [self._take_matrix(responses, request, layer, matrix) for matrix in MATRICES]
            self._fetched.update(zip(expert_names(layer, request.expert_id), pair, strict=True))
        if next(responses, None) is not None:
            raise BadTensor(f"{self.address}: expected the fetch to end after the last matrix, found more")

    def _take_matrix(
        self,
        responses: Iterator[weights_pb2.FetchResponse],
        request: weights_pb2.FetchRequest,
        layer: int,
        matrix: weights_pb2.Matrix,
    ) -> _Matrix:
        hidden, width = self.config.hidden_size, self.config.expert_width
        shape = (2 * width, hidden) if matrix == weights_pb2.MATRIX_GATE_UP else (hidden, width)
        what = f"{self.address}: layer {layer}, {'gate_up' if matrix == weights_pb2.MATRIX_GATE_UP else 'down'}"
        header = next(responses, weights_pb2.FetchResponse()).header
        found = (header.layer, header.matrix, header.element, header.num_rows, header.num_columns)
        expected = (layer, matrix, request.element, *shape)
        if found != expected:
            raise BadTensor(
                f"{what}: expected layer, matrix, element, rows and columns {expected}, found {found}: fetch elsewhere"
            )
        rows_OI = self._memory.empty(shape, STORED_DTYPES[request.element])
        _fill(bytes_of(rows_OI), responses, what)
        self.fetched_bytes += rows_OI.nbytes + len(header.scales)
        if request.element != weights_pb2.ELEMENT_INT8:
            return rows_OI.t()
        return Int8Weight(rows_OI, _scales(header, what))


def _copy(found: _Matrix, memory: Arena) -> _Matrix:
    """Return a matrix in memory of the reader's."""
    memory.clear()
    if isinstance(found, Int8Weight):
        codes_OI = memory.empty(found.codes_OI.shape, torch.int8)
        return Int8Weight(codes_OI.copy_(found.codes_OI), found.scale_O)
    return memory.empty(found.T.shape, found.dtype).copy_(found.T).T


def _scales(header: weights_pb2.MatrixHeader, what: str) -> Tensor:
    data = header.scales
    if len(data) != 4 * header.num_rows or checksum(data) != header.scales_crc32:
        raise BadTensor(
            f"{what}: expected {4 * header.num_rows} bytes of scales with CRC-32 {header.scales_crc32}, found "
            f"{len(data)} with {checksum(data)}: fetch again"
        )
    return torch.frombuffer(bytearray(data), dtype=torch.float32)


def _fill(target: memoryview, responses: Iterator[weights_pb2.FetchResponse], what: str) -> None:
    """Fill a matrix's memory with the chunks that follow."""
    end = 0
    while end < len(target):
        chunk = next(responses, weights_pb2.FetchResponse()).chunk
        data = chunk.data
        if chunk.offset != end or not 0 < len(data) <= len(target) - end:
            raise BadTensor(
                f"{what}: expected a chunk of 1 to {len(target) - end} bytes at {end}, found {len(data)} at "
                f"{chunk.offset}: fetch again"
            )
        if (found := checksum(data)) != chunk.crc32:
            raise BadTensor(
                f"{what}: expected bytes {end} to {end + len(data)} with CRC-32 {chunk.crc32}, found {found}: they "
                "were changed on the way; fetch again"
            )
        target[end : end + len(data)] = data
        end += len(data)
