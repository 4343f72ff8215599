"""Any server of OpenAI's HTTP API as a target: streamed completions or chat completions."""

from __future__ import annotations

import json
import os
import ssl
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from cluster.bench.load import PlannedRequest
from cluster.bench.measurement import CallFailed, Measurement
from cluster.bench.settings import EndpointSettings
from cluster.bench.sse import SseParser
from cluster.bench.target import INSPECT_TIMEOUT_S, Call, Clock, ServerFacts
from cluster.cli.server_address import CA, CERT, KEY
from protos.errors import InternalError, InvalidRequest, ReplicaUnavailable, ServingError

_KEEPALIVE_S = 4.0
"""Idle connections are closed then: uvicorn closes them after 5 s, and a request sent at that moment would be lost."""
_TEXT_FIELDS = ("content", "reasoning_content", "reasoning")
"""Fields of a chat's delta that bring tokens; the last two are vLLM's and SGLang's for thinking models."""
_SHOWN = 300


class OpenAiTarget:
    """Posts to /completions or /chat/completions. To be made inside the event loop that uses it.

    Args:
        settings: whom to ask; `url` is set.
        clock: of the run.

    Raises:
        InvalidRequest: the URL is none.
    """

    def __init__(self, settings: EndpointSettings, clock: Clock) -> None:
        self._base = read_base_url(settings.url or "")
        self._path = "/chat/completions" if settings.is_chat else "/completions"
        headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S, ssl=_client_context()),
            timeout=aiohttp.ClientTimeout(total=None),  # the runner's deadline is the only one
        )
        self._settings, self._clock = settings, clock
        self._model = settings.model or ""

    async def inspect(self) -> ServerFacts:
        """Ask for the models; see Target."""
        url = f"{self._base}/models"
        try:
            timeout = aiohttp.ClientTimeout(total=INSPECT_TIMEOUT_S)
            async with self._session.get(url, timeout=timeout) as response:
                status, text = response.status, await response.text(errors="replace")
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise ReplicaUnavailable(
                f"expected an OpenAI API at {self._base}, found nobody who answers ({_said(error)}): start the "
                "server, or give another --url"
            ) from error
        models = _read_models(text) if status == 200 else []
        if not models and not self._model:
            raise _no_models(url, status, text)
        # A gateway may serve models that it does not list.
        self._model = self._model or str(models[0]["id"])
        facts: dict[str, Any] = next((model for model in models if model["id"] == self._model), {})
        context = facts.get("max_model_len")
        return ServerFacts(
            model=self._model,
            context_length=context if isinstance(context, int) else None,
            description=f"HTTP {self._base}{self._path}",
        )

    def prepare(self, request: PlannedRequest) -> Call:
        """Write the body; see Target."""
        body = json.dumps(self.body(request), separators=(",", ":")).encode()

        async def call(measurement: Measurement) -> None:
            try:
                await self._send(body, measurement)
            except aiohttp.ClientConnectorError as error:
                raise CallFailed("unreachable", _said(error), is_unreachable=True) from error
            except (aiohttp.ClientError, OSError) as error:
                raise CallFailed("disconnected", _said(error)) from error

        return call

    def body(self, request: PlannedRequest) -> dict[str, Any]:
        """Return what is sent for a request."""
        settings = self._settings
        messages = [{"role": "user", "content": request.prompt}]
        extensions = {"ignore_eos": True} if settings.ignores_eos else {}
        return {
            "model": self._model,
            **({"messages": messages} if settings.is_chat else {"prompt": request.prompt}),
            "max_tokens": request.max_tokens,
            "temperature": settings.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({**extensions, "return_token_ids": True} if settings.has_extensions else {}),
            **settings.extra_body,
        }

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def _send(self, body: bytes, measurement: Measurement) -> None:
        headers = {"Content-Type": "application/json"}
        async with self._session.post(self._base + self._path, data=body, headers=headers) as response:
            if response.status != 200:
                text = await response.text(errors="replace")
                raise CallFailed(f"HTTP {response.status}", _error_message(text))
            if response.content_type != "text/event-stream":
                raise CallFailed("malformed", f"expected text/event-stream, found {response.content_type}")
            parser = SseParser()
            async for data in response.content.iter_any():
                now_s = self._clock.now_s()
                for event in parser.feed(data):
                    if event == b"[DONE]":
                        return
                    _note_event(event, measurement, now_s)
        # Without [DONE] a stream may be whole, if its choice was: some servers leave it out.
        if measurement.finish_reason is None:
            raise CallFailed("truncated", "the stream ended without a finish_reason and without [DONE]")


def read_base_url(text: str) -> str:
    """Return a base URL without a slash at its end; without a path it gets /v1.

    Raises:
        InvalidRequest: it is no http or https URL.
    """
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise InvalidRequest(
            f"--url: expected http://HOST:PORT/v1, found {text!r}; for example http://localhost:8000/v1"
        )
    path = parts.path.rstrip("/").removesuffix("/completions").removesuffix("/chat") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def _note_event(data: bytes, measurement: Measurement, now_s: float) -> None:
    """Note one event of the stream.

    Raises:
        CallFailed: it tells of an error, or is not what the API says.
    """
    try:
        chunk = json.loads(data)
        if error := chunk.get("error"):
            code = error.get("code") or error.get("type") if isinstance(error, dict) else None
            raise CallFailed(f"error in stream: {code}" if code else "error in stream", _error_message(data.decode()))
        if usage := chunk.get("usage"):
            measurement.usage_prompt_tokens = usage.get("prompt_tokens")
            measurement.usage_completion_tokens = usage.get("completion_tokens")
            measurement.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        for choice in chunk.get("choices") or ():
            token_ids = choice.get("token_ids")
            delta = choice.get("delta") or {}
            if token_ids:
                measurement.add_message(now_s, len(token_ids))
            elif choice.get("text") or any(delta.get(name) for name in _TEXT_FIELDS) or delta.get("tool_calls"):
                measurement.add_message(now_s, None)
            measurement.finish_reason = choice.get("finish_reason") or measurement.finish_reason
    except (ValueError, AttributeError, TypeError) as error:
        shown = data[:_SHOWN].decode(errors="replace")
        raise CallFailed("malformed", f"expected a chunk of a completion, found {shown!r}") from error


def _read_models(text: str) -> list[dict[str, Any]]:
    try:
        models = json.loads(text)["data"]
        return [model for model in models if isinstance(model["id"], str)]
    except (ValueError, KeyError, TypeError):
        return []


def _no_models(url: str, status: int, text: str) -> ServingError:
    found = f"HTTP {status}: {_error_message(text)}" if text else f"HTTP {status}"
    kind = InvalidRequest if 400 <= status < 500 else InternalError
    return kind(f"expected a list of models from {url}, found {found}: give the model with --model, or another --url")


def _error_message(text: str) -> str:
    """Return the message of an error body, whoever wrote it."""
    try:
        error = json.loads(text)
        while isinstance(error, dict) and (inner := error.get("error") or error.get("message") or error.get("detail")):
            error = inner
        return str(error)[:_SHOWN]
    except ValueError:
        return " ".join(text.split())[:_SHOWN]


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _client_context() -> ssl.SSLContext:
    """Return what to believe and to show, as the environment says."""
    try:
        context = ssl.create_default_context(cafile=os.environ.get(CA))
        if CERT in os.environ:
            context.load_cert_chain(os.environ[CERT], os.environ.get(KEY))
    except OSError as error:
        raise InvalidRequest(f"{CA}, {CERT}, {KEY}: expected files in PEM, found: {error}; correct them") from error
    return context
