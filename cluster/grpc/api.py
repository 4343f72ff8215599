"""herd.inference.v1.InferenceService over the front door's core: messages in, messages out, no server.

A server calls these methods and turns the ServingErrors they raise into a status.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import TypeVar

from google.protobuf.message import Message

from cluster.auth.quota import ANYBODY, Caller
from cluster.grpc.messages import (
    chat_messages,
    generate_response,
    load_response,
    model_message,
    optional,
    server_info_response,
)
from cluster.prompt import chat_prompt, text_prompt
from cluster.request_id import RequestId, request_id
from cluster.served_model import ServedModel
from cluster.service import InferenceService
from cluster.validation import CompletionRequest, RequestFields, check_model_name, check_request, invalid
from protos.errors import Cancelled, ServingError
from protos.inference.v1 import inference_pb2 as pb

Result = TypeVar("Result")

THREAD_BYTES = 16 * 1024
"""Longer requests are turned to tokens in a thread: they would hold up everyone's streams."""


class GrpcApi:
    """The service's methods.

    Args:
        service: answers them.
    """

    def __init__(self, service: InferenceService) -> None:
        self._service = service

    @property
    def longest_s(self) -> float:
        """Return the seconds after which no request runs any more."""
        return self._service.longest_s

    async def generate(
        self,
        request: pb.GenerateRequest,
        timeout_s: float | None = None,
        name: RequestId | None = None,
        headers: Mapping[str, str] | None = None,
        caller: Caller = ANYBODY,
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Generate; close the generator to cancel.

        Args:
            request: what to generate.
            timeout_s: seconds until the call's deadline; None: it has none.
            name: of the request; None: a new one.
            headers: the call's metadata; None: none.
            caller: whose quota it counts against.

        Raises:
            ServingError: as the proto says.
        """
        code = "INTERNAL"
        record = self._service.record("grpc", name or request_id(), headers or {})
        try:
            model, named = self._service.model, record.request_id
            with caller.request():
                checked = await _off_loop(request, lambda: read_generate_request(request, model, timeout_s, named))
                async with aclosing(self._service.generate(checked, record, caller)) as events:
                    async for event in events:
                        yield generate_response(event, model)
            code = "OK"
        except (asyncio.CancelledError, GeneratorExit):
            code = Cancelled.grpc_code.name
            raise
        except ServingError as error:
            code, record.error = error.grpc_code.name, error
            raise
        finally:
            record.end(code)

    async def tokenize(self, request: pb.TokenizeRequest, caller: Caller = ANYBODY) -> pb.TokenizeResponse:
        """Turn text or a conversation into the ids that `generate` would continue.

        Raises:
            RateLimited: the caller has made as many requests as they may.
            NotFound: there is no such model.
            InvalidRequest: the input is empty or wrong, or the model has no tokenizer.
        """
        model = self._service.model
        check_model_name(request.model, model)
        with caller.request():
            return pb.TokenizeResponse(ids=await _off_loop(request, lambda: _prompt_ids(request, model)))

    async def list_models(self) -> pb.ListModelsResponse:
        """List the served model."""
        return pb.ListModelsResponse(models=[model_message(self._service.model)])

    async def get_server_info(self) -> pb.GetServerInfoResponse:
        """Tell what is running.

        Raises:
            NoReplica: the directory does not answer.
        """
        return server_info_response(self._service.model, await self._service.describe())

    async def get_load(self) -> pb.GetLoadResponse:
        """Tell how busy the routers are.

        Raises:
            NoReplica: no router answers.
        """
        return load_response(await self._service.load())


def read_generate_request(
    request: pb.GenerateRequest, model: ServedModel, timeout_s: float | None, name: RequestId
) -> CompletionRequest:
    """Check a request and turn its input to tokens. Blocks for as long as that takes.

    Raises:
        RequestError: something is wrong with it.
    """
    check_model_name(request.model, model)
    sampling, stopping = request.sampling, request.stopping
    fields = RequestFields(
        prompts=[_prompt_ids(request, model)],
        temperature=optional(sampling, "temperature"),
        top_k=optional(sampling, "top_k"),
        top_p=optional(sampling, "top_p"),
        min_p=optional(sampling, "min_p"),
        repetition_penalty=optional(sampling, "repetition_penalty"),
        presence_penalty=optional(sampling, "presence_penalty"),
        frequency_penalty=optional(sampling, "frequency_penalty"),
        seed=optional(sampling, "seed"),
        max_tokens=optional(stopping, "max_tokens"),
        stop=tuple(stopping.stop),
        stop_ids=tuple(stopping.stop_token_ids),
        ignore_eos=stopping.ignore_eos,
        logprobs=optional(request, "logprobs"),
        prompt_logprobs=optional(request, "prompt_logprobs"),
        priority=request.priority,
        num_choices=request.num_choices or 1,
        timeout_s=timeout_s,
    )
    return check_request(fields, model, name.unique("gen"))


def _prompt_ids(request: pb.GenerateRequest | pb.TokenizeRequest, model: ServedModel) -> tuple[int, ...]:
    match request.WhichOneof("input"):
        case "prompt":
            return text_prompt(request.prompt, model)
        case "chat":
            return chat_prompt(chat_messages(request.chat), model)
        case "token_ids" if isinstance(request, pb.GenerateRequest):
            return tuple(request.token_ids.ids)
        case _:
            raise invalid("input", "a prompt", "none", "set one of the fields of `input`")


async def _off_loop(request: Message, work: Callable[[], Result]) -> Result:
    return await asyncio.to_thread(work) if request.ByteSize() > THREAD_BYTES else work()
