"""The shapes of answers, for /openapi.json only: answers are written without them, in answer.py and its users."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from cluster.service_events import FinishReason


class PromptTokensDetails(BaseModel):
    """Where a prompt's tokens came from."""

    cached_tokens: int
    """Those that were not computed again."""


class Usage(BaseModel):
    """What a request cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CompletionLogprobs(BaseModel):
    """Logprobs of a completion, a column each; the prompt's first token has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One continuation of one prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Completion(BaseModel):
    """Answer of /v1/completions; streamed, its chunks look alike."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class TokenLogprob(BaseModel):
    """A token that was or could have been chosen."""

    token: str
    logprob: float
    bytes: list[int]


class ScoredToken(TokenLogprob):
    """A token of an answer."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """Logprobs of a message."""

    content: list[ScoredToken]
    refusal: None


class ChatMessage(BaseModel):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """One answer to the conversation."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletion(BaseModel):
    """Answer of /v1/chat/completions; streamed, its chunks have a `delta` in place of the message."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ModelCard(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    """Most tokens of prompt and answer together."""


class ModelList(BaseModel):
    """The served models."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(BaseModel):
    """A front door that can answer requests."""

    status: Literal["ok"]
    routers: int
    """Routers that answer; 0: the first request starts one."""


class ErrorDetail(BaseModel):
    """What was expected, what was found and what to do."""

    message: str
    type: Literal[
        "invalid_request_error", "authentication_error", "permission_error", "rate_limit_error", "server_error"
    ]
    param: str | None
    """The field that is wrong."""
    code: str | None


class Error(BaseModel):
    """Every answer that is no success."""

    error: ErrorDetail
