"""What clients may send: the bodies' fields and types. Values are checked in cluster/validation.py.

Unknown fields are ignored, as every OpenAI-compatible server does: clients send fields of newer APIs and other servers.
Fields that are known, not supported and would change the answer are refused: see unsupported.py.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from cluster.openai.json_text import parse_object
from cluster.openai.unsupported import refuse_unsupported
from cluster.validation import RequestFields, invalid, shown
from protos.errors import InvalidRequest

Body = TypeVar("Body", bound="CommonBody")

_Texts = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class StreamOptions(BaseModel):
    """How to stream."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool | None = None
    """End the stream with a chunk that has no choices and the usage."""


class CommonBody(BaseModel):
    """Fields of both endpoints; null means left out."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str | None = None
    temperature: float | None = None
    top_k: int | None = None
    """-1 and 0 keep all tokens."""
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    n: int | None = None
    stop: _Texts | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: int | None = None
    priority: int | None = None
    """Lower numbers are served first."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    """Add `token_ids` to every choice; always on without a tokenizer."""
    return_tokens_as_token_ids: bool | None = None
    """Write tokens in logprobs as "token_id:123"; always on without a tokenizer."""

    @property
    def includes_usage(self) -> bool:
        """Tell whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def fields(
        self, prompts: list[tuple[int, ...]], default_max_tokens: int | None, logprobs: int | None
    ) -> RequestFields:
        """Return the fields in the spelling of both APIs."""
        return RequestFields(
            prompts=prompts,
            temperature=self.temperature,
            top_k=0 if self.top_k == -1 else self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            max_tokens=self.max_tokens,
            default_max_tokens=default_max_tokens,
            stop=self.stop or (),
            stop_ids=self.stop_token_ids or (),
            ignore_eos=bool(self.ignore_eos),
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs,
            priority=self.priority or 0,
            num_choices=1 if self.n is None else self.n,
        )


class CompletionsBody(CommonBody):
    """Body of /v1/completions."""

    prompt: Any
    """Text, a list of texts, token ids, or a list of lists of token ids."""
    echo: bool | None = None
    """Put the prompt before the completion, its logprobs too where logprobs are asked for."""
    logprobs: int | None = None
    """Likeliest alternatives to report per token; null: no logprobs."""


class ChatBody(CommonBody):
    """Body of /v1/chat/completions."""

    messages: list[dict[str, Any]]
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
    """Goes before max_tokens, its older name."""


def parse_body(kind: type[Body], data: bytes) -> Body:
    """Parse a request's body.

    Raises:
        InvalidRequest: it is not JSON, a field has the wrong type, or would change the answer and is not supported.
    """
    raw = parse_object(data)
    refuse_unsupported(raw)
    try:
        body = kind.model_validate(raw)
    except ValidationError as error:
        raise _explain(error) from error
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options", "none without stream", "some", "set stream to true or leave them out")
    return body


def _explain(error: ValidationError) -> InvalidRequest:
    """Return what is wrong with the first wrong field."""
    first = error.errors(include_url=False, include_context=False)[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return invalid(name, "a value, as it is required", "none", "add it")
    expected = first["msg"].removeprefix("Input should be ")
    return invalid(name, expected, shown(first["input"]), "correct it and send the request again")
