"""One HTTP request for tokens, from its body to the last byte of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster.openai.answer import Answer, Endpoint, collect
from cluster.openai.authentication import caller_of
from cluster.openai.client_watch import unless_gone
from cluster.openai.error_object import error_object, internal_error
from cluster.openai.json_text import JsonResponse, to_json
from cluster.openai.request_id import request_id_of
from cluster.request_record import RequestRecord
from cluster.service import InferenceService
from cluster.service_events import Progress, ServiceEvent
from protos.errors import Cancelled, ServingError

THREAD_BYTES = 16 * 1024
"""Longer bodies are parsed and turned to tokens in a thread: they would hold up everyone's streams."""

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the chunks
]


class Exchange(Response):
    """Reads a request, generates and answers, streamed or whole. Errors before the first byte are raised.

    It is a response so that everything happens in one coroutine: whatever ends that ends the generation.

    Args:
        service: generates.
        endpoint: whose format is spoken.
    """

    def __init__(self, service: InferenceService, endpoint: Endpoint) -> None:
        super().__init__()
        self._service = service
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request."""
        code = 500
        record = self._service.record(self._endpoint.name, request_id_of(scope), Headers(scope=scope))
        try:
            with caller_of(scope).request():
                code = await self._serve(scope, receive, send, record)
        except (Cancelled, ClientDisconnect):
            code = Cancelled.http_status  # nobody is there to be told
        except asyncio.CancelledError:
            code = Cancelled.http_status
            raise
        except ServingError as error:
            code, record.error = error.http_status, error
            raise
        except Exception as error:
            record.error = internal_error(error, scope["path"], record.request_id)
            raise record.error from error
        finally:
            record.end(str(code))

    async def _serve(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord) -> int:
        answer = await self._read(scope, receive, record)
        events = self._service.generate(answer.request, record, caller_of(scope))
        if answer.stream:
            # A client that reads no more holds up whoever sends to it: nobody looks at the request's deadline then.
            limit = asyncio.timeout(self._service.longest_s)
            try:
                async with limit:
                    return await unless_gone(receive, _stream(answer, events, send, record))
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise Cancelled("expected the client to read its answer in time, found that it does not") from error
        body = await unless_gone(receive, _whole(answer, events))
        await JsonResponse(body)(scope, receive, send)
        return 200

    async def _read(self, scope: Scope, receive: Receive, record: RequestRecord) -> Answer:
        """Return the request; its body, which may be long, is not kept while it is answered."""
        data, model = await Request(scope, receive).body(), self._service.model
        if len(data) > THREAD_BYTES:
            # Not `unless_gone`: a thread goes on anyway, and to listen for the end gives the body's room to another.
            return await asyncio.to_thread(self._endpoint.parse, data, model, record.request_id)
        return self._endpoint.parse(data, model, record.request_id)


async def _whole(answer: Answer, events: AsyncGenerator[ServiceEvent, None]) -> dict[str, object]:
    async with aclosing(events):
        return answer.whole(await collect(events, answer.request.num_sequences))


async def _stream(answer: Answer, events: AsyncGenerator[ServiceEvent, None], send: Send, record: RequestRecord) -> int:
    """Send server-sent events and return the status that the stream deserves."""
    async with aclosing(events):
        first = await anext(events)  # refusals are raised here, before the status is sent
        await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        error: ServingError | None = None
        try:
            await _send_chunks(answer, first, send)
            async for event in events:
                await _send_chunks(answer, event, send)
        except ServingError as caught:
            error = caught
        except Exception as caught:  # noqa: BLE001  the response has begun: only this stream can tell
            error = internal_error(caught, "a stream", record.request_id)
        record.error = error
        if error is not None:
            await _send_data(to_json(error_object(error)), send)
        else:
            await _send_data(b"[DONE]", send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return 200 if error is None else error.http_status


async def _send_chunks(answer: Answer, event: ServiceEvent, send: Send) -> None:
    if isinstance(event, Progress):
        body = _comment(event)
    else:
        body = b"".join(b"data: %b\n\n" % to_json(chunk) for chunk in answer.chunks(event))
    if body:
        await send({"type": "http.response.body", "body": body, "more_body": True})


def _comment(progress: Progress) -> bytes:
    """Return progress as a comment of the stream, which every reader of server-sent events passes over."""
    fields: dict[str, object] = {
        "prompt_tokens_done": progress.num_prompt_done,
        "prompt_tokens": progress.num_prompt_tokens,
    }
    if progress.queue_position:
        start_s = progress.expected_start_s
        fields |= {
            "queue_position": progress.queue_position,
            "expected_start_s": None if start_s is None else round(start_s, 3),
        }
    return b": progress %b\n\n" % to_json(fields)


async def _send_data(data: bytes, send: Send) -> None:
    await send({"type": "http.response.body", "body": b"data: %b\n\n" % data, "more_body": True})
