"""/v1/chat/completions: conversations, answered as the assistant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cluster.openai.answer import Answer, Envelope, Outcome
from cluster.openai.bodies import ChatBody, parse_body
from cluster.prompt import chat_prompt, check_role
from cluster.request_id import RequestId
from cluster.served_model import ServedModel
from cluster.service_events import Delta, Finished, ScoredToken, ServiceEvent, Started
from cluster.validation import check_max_tokens, check_model_name, check_request, invalid, shown
from models.chat_message import ROLES, ChatMessage, Text

KIND = "chat.completion"
CHUNK_KIND = "chat.completion.chunk"
_DEVELOPER = "developer"
"""OpenAI's newer word for the system."""
CHAT_ROLES = (*ROLES, _DEVELOPER)
"""Who can speak."""


class ChatEndpoint:
    """Reads chat requests."""

    name = "chat"

    def parse(self, data: bytes, model: ServedModel, request_id: RequestId) -> Answer:
        """Parse and check a body; see Endpoint."""
        body = parse_body(ChatBody, data)
        check_model_name(body.model, model)
        return ChatAnswer(body, model, request_id)


class ChatAnswer:
    """One chat request and how its answer is written.

    Args:
        body: what the client sent.
        model: what is served.
        request_id: the request's name.

    Raises:
        RequestError: something is wrong with the request.
    """

    def __init__(self, body: ChatBody, model: ServedModel, request_id: RequestId) -> None:
        if body.max_completion_tokens is not None:
            if body.max_tokens is not None:
                check_max_tokens(body.max_tokens)
            body = body.model_copy(update={"max_tokens": body.max_completion_tokens})
        prompt = chat_prompt([read_message(index, each) for index, each in enumerate(body.messages)], model)
        self._envelope = Envelope(body, model, request_id.unique("chatcmpl"))
        # Without max_tokens a chat answer may take what the context leaves, as in vLLM.
        fields = body.fields([prompt], None, _logprobs(body))
        self.request = check_request(fields, model, self._envelope.request_id)
        self.stream = bool(body.stream)
        self._wants_logprobs = bool(body.logprobs)
        self._wants_prompt_logprobs = body.prompt_logprobs is not None

    def whole(self, outcome: Outcome) -> dict[str, Any]:
        """Return the answer in one object."""
        choices = []
        for index, choice in enumerate(outcome.choices):
            message = {"role": "assistant", "content": choice.text, "refusal": None}
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": self._logprobs(choice.logprobs),
                    "finish_reason": choice.finish_reason,
                    **self._token_ids(choice.token_ids),
                }
            )
        answer = self._envelope.whole(KIND, choices, outcome.usage)
        if self._wants_prompt_logprobs:
            answer["prompt_logprobs"] = self._envelope.names.prompt_logprobs(outcome.prompt_logprobs[0])
        return answer

    def chunks(self, event: ServiceEvent) -> Iterator[dict[str, Any]]:
        """Yield the chunks of a streamed answer that an event brings."""
        match event:
            case Started():
                yield from self._first_chunks(event)
            case Delta():
                if event.text or event.finish_reason or self._wants_logprobs or self._envelope.returns_token_ids:
                    yield self._delta_chunk(event)
            case Finished():
                yield from self._envelope.last_chunks(CHUNK_KIND, event)

    def _first_chunks(self, event: Started) -> Iterator[dict[str, Any]]:
        for index in range(self.request.num_sequences):
            delta = {"role": "assistant", "content": ""}
            chunk = self._envelope.chunk(
                CHUNK_KIND, {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            )
            if self._wants_prompt_logprobs and index == 0:
                chunk["prompt_logprobs"] = self._envelope.names.prompt_logprobs(event.prompt_logprobs[0])
            yield chunk

    def _delta_chunk(self, event: Delta) -> dict[str, Any]:
        choice = {
            "index": event.choice,
            "delta": {"content": event.text} if event.text else {},
            "logprobs": self._logprobs(event.logprobs),
            "finish_reason": event.finish_reason,
            **self._token_ids(event.token_ids),
        }
        return self._envelope.chunk(CHUNK_KIND, choice)

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any] | None:
        return self._envelope.names.chat_logprobs(tokens) if self._wants_logprobs else None

    def _token_ids(self, token_ids: Sequence[int]) -> dict[str, Any]:
        return {"token_ids": list(token_ids)} if self._envelope.returns_token_ids else {}


def read_message(index: int, message: Mapping[str, Any]) -> ChatMessage:
    """Return a message of the conversation, checked.

    Args:
        index: its place, for what an error says.
        message: as the client sent it.

    Raises:
        InvalidRequest: the role is unknown, or the content is something other than text.
    """
    name = f"messages.{index}"
    role = message.get("role")
    if role == _DEVELOPER:
        role = "system"
    if message.get("tool_calls") not in (None, []):
        raise invalid(f"{name}.tool_calls", "nothing, as tools are not supported", "some", "leave them out")
    return ChatMessage(role=check_role(f"{name}.role", role), content=_content(f"{name}.content", message))


def _content(name: str, message: Mapping[str, Any]) -> str | tuple[Text, ...]:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(name, "text or a list of text parts", shown(content), "send text")
    return tuple(_part(f"{name}.{index}", part) for index, part in enumerate(content))


def _part(name: str, part: object) -> Text:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        found = f"type {shown(part['type'])}" if isinstance(part, dict) and "type" in part else shown(part)
        raise invalid(name, 'a part {"type": "text", "text": ...}', found, "send text only")
    return Text(part["text"])


def _logprobs(body: ChatBody) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs is not None:
        raise invalid("top_logprobs", "none without logprobs", shown(body.top_logprobs), "set logprobs to true")
    return None
