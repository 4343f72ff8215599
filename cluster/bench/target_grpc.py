"""Herd's gRPC API as a target."""

from __future__ import annotations

import grpc

from cluster.bench.load import PlannedRequest
from cluster.bench.measurement import CallFailed, Measurement
from cluster.bench.settings import EndpointSettings
from cluster.bench.target import INSPECT_TIMEOUT_S, Call, Clock, ServerFacts
from cluster.cli.server_address import TLS_PREFIX, certificates
from protos.errors import DeadlineExceeded, InvalidRequest, ReplicaUnavailable, from_rpc_error
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1.inference_pb2_grpc import InferenceServiceStub

_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_OPTIONS = [
    # After a server went away: look for it again at once and every second, not after minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
]
_REASONS = {
    value: pb.FinishReason.Name(value).removeprefix("FINISH_REASON_").lower() for value in pb.FinishReason.values()
}


class GrpcTarget:
    """Calls Generate over one channel. To be made inside the event loop that uses it.

    Args:
        settings: whom to ask.
        timeout_s: each call's deadline, told to the server.
        clock: of the run.

    Raises:
        InvalidRequest: the address is none.
    """

    def __init__(self, settings: EndpointSettings, timeout_s: float, clock: Clock) -> None:
        address = settings.grpc.removeprefix(TLS_PREFIX)
        host, colon, port = address.rpartition(":")
        if not (host and colon and port.isdigit()):
            raise InvalidRequest(f"--grpc: expected HOST:PORT, found {settings.grpc!r}; for example localhost:9000")
        local = [("grpc.enable_http_proxy", 0)] if host in ("localhost", "127.0.0.1", "[::1]") else []
        if settings.grpc.startswith(TLS_PREFIX):
            credentials = grpc.ssl_channel_credentials(*certificates())
            self._channel = grpc.aio.secure_channel(address, credentials, options=[*_OPTIONS, *local])
        else:
            self._channel = grpc.aio.insecure_channel(address, options=[*_OPTIONS, *local])
        self._stub = InferenceServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {settings.api_key}"),) if settings.api_key else ()
        self._settings, self._timeout_s, self._clock = settings, timeout_s, clock
        self._model = settings.model or ""

    async def inspect(self) -> ServerFacts:
        """Ask for the models; see Target."""
        address = self._settings.grpc
        try:
            listed = await self._stub.ListModels(
                pb.ListModelsRequest(), timeout=INSPECT_TIMEOUT_S, metadata=self._metadata
            )
        except grpc.RpcError as error:
            found = from_rpc_error(error, address)
            if not isinstance(found, ReplicaUnavailable | DeadlineExceeded) or error.trailing_metadata():
                raise found from error
            raise ReplicaUnavailable(
                f"expected a running Herd at {address}, found nobody who answers: start one with `herd serve`, or give "
                "its address with --grpc, or that of an OpenAI API with --url"
            ) from error
        models = {model.name: model for model in listed.models}
        model = models.get(self._model, listed.models[0])
        if not model.has_tokenizer and self._settings.is_chat:
            raise InvalidRequest(f"--chat: expected a model with a tokenizer, found {model.name}: leave --chat out")
        self._model = self._model or model.name
        return ServerFacts(model=self._model, context_length=model.context_length, description=f"gRPC {address}")

    def prepare(self, request: PlannedRequest) -> Call:
        """Build the message; see Target."""
        message = pb.GenerateRequest(
            model=self._model,
            sampling=pb.Sampling(temperature=self._settings.temperature),
            stopping=pb.Stopping(max_tokens=request.max_tokens, ignore_eos=self._settings.ignores_eos),
        )
        if isinstance(request.prompt, list):
            message.token_ids.ids.extend(request.prompt)
        elif self._settings.is_chat:
            message.chat.messages.add(role="user", content=request.prompt)
        else:
            message.prompt = request.prompt

        async def call(measurement: Measurement) -> None:
            await self._send(message, measurement)

        return call

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close(grace=None)

    async def _send(self, message: pb.GenerateRequest, measurement: Measurement) -> None:
        call = self._stub.Generate(message, timeout=self._timeout_s, metadata=self._metadata)
        has_ended = False
        try:
            async for response in call:
                match response.WhichOneof("event"):
                    case "delta":
                        _note_delta(response.delta, measurement, self._clock.now_s())
                    case "finished":
                        usage = response.finished.usage
                        measurement.usage_prompt_tokens = usage.prompt_tokens
                        measurement.usage_completion_tokens = usage.completion_tokens
                        measurement.cached_tokens = usage.cached_tokens
                        has_ended = True
        except grpc.RpcError as error:
            raise _failure(error, self._settings.grpc, bool(measurement.message_s)) from error
        finally:
            call.cancel()  # nothing happens to a call that has ended
        if not has_ended:
            raise CallFailed("truncated", "the stream ended without its last message")


def _note_delta(delta: pb.Delta, measurement: Measurement, now_s: float) -> None:
    if delta.token_ids:
        measurement.add_message(now_s, len(delta.token_ids))
    if delta.finish_reason:
        measurement.finish_reason = _REASONS.get(delta.finish_reason, str(delta.finish_reason))


def _failure(error: grpc.RpcError, address: str, has_begun: bool) -> CallFailed:
    found = from_rpc_error(error, address)
    if isinstance(found, DeadlineExceeded):
        return CallFailed("timeout", found.message)
    if type(found) is ReplicaUnavailable and not error.trailing_metadata():
        details = str(error.details())
        if has_begun or "connect" not in details.lower():
            return CallFailed("disconnected", details)
        return CallFailed("unreachable", details, is_unreachable=True)
    return CallFailed(f"gRPC {error.code().name}", found.message)
