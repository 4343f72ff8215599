"""An expert replica that does what a test tells it to: a real gRPC server, experts that double their input."""

from __future__ import annotations

import threading
from concurrent import futures

import grpc
import torch

from protos import errors
from protos.checksum import result_checksum
from protos.codec import decode_tensor, encode_tensor
from protos.expert.v1 import expert_pb2, expert_pb2_grpc
from router.placement import ExpertHolder
from router.transport.local import RunExperts


class ScriptedReplica(expert_pb2_grpc.ExpertServiceServicer):
    """Answers with 2·hidden, or what `run_experts` makes of it, unless told to refuse, to fail, to hang, or to err.

    While `gate` is cleared, answers wait. The next `num_damaged` have a bit turned once their checksum was made.
    """

    def __init__(
        self,
        replica_id: str,
        expert_ids: tuple[int, ...],
        run_experts: RunExperts = lambda layer, hidden_ND, *_: hidden_ND * 2,
    ) -> None:
        self.replica_id = replica_id
        self.expert_ids = expert_ids
        self.run_experts = run_experts
        self.dispatches: list[expert_pb2.Dispatch] = []
        self.hellos: list[expert_pb2.Hello] = []
        self.failures: list[errors.ServingError] = []
        self.refusal: errors.ServingError | None = None
        self.wrong_rows = 0
        self.hanging = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.num_damaged = 0
        self._stopped = threading.Event()
        self._port = 0
        self._server: grpc.Server | None = None
        self.start()

    def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        self._stopped.clear()
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        expert_pb2_grpc.add_ExpertServiceServicer_to_server(self, self._server)
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        self._server.start()

    def stop(self) -> None:
        """Die: every stream breaks at once."""
        self._stopped.set()
        self._server.stop(0).wait()

    @property
    def holder(self) -> ExpertHolder:
        return ExpertHolder(replica_id=self.replica_id, address=f"127.0.0.1:{self._port}", expert_ids=self.expert_ids)

    def Dispatch(self, request_iterator, context):
        self.hellos.append(next(request_iterator).hello)
        if self.refusal:
            context.set_trailing_metadata(self.refusal.trailing_metadata())
            context.abort(self.refusal.grpc_code, self.refusal.message)
        yield expert_pb2.DispatchResponse(welcome=expert_pb2.Welcome())
        for request in request_iterator:
            self.dispatches.append(request.dispatch)
            if self.hanging.is_set():
                self._stopped.wait(30)
                return
            if self.failures:
                error = expert_pb2.DispatchError(
                    dispatch_id=request.dispatch.dispatch_id, detail=self.failures.pop(0).detail()
                )
                yield expert_pb2.DispatchResponse(error=error)
                continue
            self.gate.wait(30)
            dispatch = request.dispatch
            hidden_ND = decode_tensor(dispatch.hidden, dtype=torch.float32, shape=(None, None))
            outputs_ND = self.run_experts(dispatch.layer, hidden_ND, dispatch.expert_ids, dispatch.token_counts)
            result = expert_pb2.DispatchResult(
                dispatch_id=dispatch.dispatch_id, hidden=encode_tensor(outputs_ND[self.wrong_rows :])
            )
            if request.dispatch.HasField("checksum"):
                result.checksum = result_checksum(result)
            if self.num_damaged:
                self.num_damaged -= 1
                result.hidden.data = result.hidden.data[:-1] + bytes([result.hidden.data[-1] ^ 1])
            yield expert_pb2.DispatchResponse(result=result)
