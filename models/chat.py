"""Conversations to token ids. Only the format writes special tokens; everything a caller sends is text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from models.chat_format import LLAMA3_CHAT, LLAMA4_CHAT, TOOLS_PROMPT, ChatFormat
from models.chat_message import ChatMessage, Text, ToolCall
from models.tokenizer import Tokenizer
from protos.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class _Special:
    """A special token in a rendered conversation, between pieces of text."""

    name: str


def render_chat(
    messages: Sequence[ChatMessage], tokenizer: Tokenizer, tools: Sequence[Mapping[str, object]] = ()
) -> list[int]:
    """Return the prompt that makes the model answer as the assistant.

    Args:
        messages: oldest first, at least one.
        tokenizer: its special tokens decide the format, Llama 4's or Llama 3's.
        tools: JSON descriptions of functions the model may call, as in OpenAI's API; they precede the first words of
            the user.

    Raises:
        InvalidRequest: there are no messages, the tokenizer has no chat tokens, or the format cannot say this.
    """
    chat_format = _find_format(tokenizer)
    if not messages:
        raise InvalidRequest("expected at least one message, found none; send what the user said")
    pieces = _conversation(messages, chat_format, tools)
    return list(_encode(pieces, tokenizer))


def _find_format(tokenizer: Tokenizer) -> ChatFormat:
    for chat_format in (LLAMA4_CHAT, LLAMA3_CHAT):
        if all(tokenizer.special_id(name) is not None for name in chat_format.tokens):
            return chat_format
    raise InvalidRequest(
        "expected a model whose tokenizer has the chat tokens of Llama 3 or Llama 4, found one without; "
        "use completions with a plain prompt"
    )


def _encode(pieces: Iterator[str | _Special], tokenizer: Tokenizer) -> Iterator[int]:
    """Yield the ids; text between two special tokens is encoded in one go, as if it had been written so."""
    text: list[str] = []
    for piece in pieces:
        if isinstance(piece, str):
            text.append(piece)
            continue
        yield from tokenizer.encode("".join(text))
        text.clear()
        yield _special_id(piece.name, tokenizer)
    yield from tokenizer.encode("".join(text))


def _special_id(name: str, tokenizer: Tokenizer) -> int:
    token_id = tokenizer.special_id(name)
    if token_id is None:
        raise InvalidRequest(
            f"expected a model with the special token {name}, which these messages need, found one without; "
            f"leave images and tool calls out"
        )
    return token_id


def _conversation(
    messages: Sequence[ChatMessage], chat_format: ChatFormat, tools: Sequence[Mapping[str, object]]
) -> Iterator[str | _Special]:
    yield _Special("<|begin_of_text|>")
    rest = list(messages)
    if rest[0].role == "system":
        environment = "Environment: ipython\n" if tools else ""
        yield from _turn("system", [environment + rest.pop(0).text.strip()], chat_format)
    if tools:
        yield from _turn("user", [_describe(tools), _first_words(rest)], chat_format)
        rest = rest[1:]
    for message in rest:
        yield from _message(message, chat_format)
    yield from _header("assistant", chat_format)


def _first_words(messages: Sequence[ChatMessage]) -> str:
    if not messages or messages[0].role != "user":
        raise InvalidRequest(
            "expected a user message to describe the tools in, first or right after the system's, found "
            f"{messages[0].role if messages else 'none'}; put one there"
        )
    return messages[0].text.strip()


def _message(message: ChatMessage, chat_format: ChatFormat) -> Iterator[str | _Special]:
    if message.role in ("tool", "ipython"):
        return _turn("ipython", [_json(message.text)], chat_format)
    if message.tool_calls:
        return _turn("assistant", _calling(message, chat_format), chat_format)
    return _turn(message.role, _said(message, chat_format), chat_format)


def _said(message: ChatMessage, chat_format: ChatFormat) -> list[str | _Special]:
    if chat_format.image is None or isinstance(message.content, str):
        return [message.text.strip() if chat_format.strips_every_turn else message.text]
    return [part.text if isinstance(part, Text) else _Special(chat_format.image) for part in message.parts]


def _calling(message: ChatMessage, chat_format: ChatFormat) -> list[str | _Special]:
    """Return the body of a turn with tool calls."""
    found = len(message.tool_calls)
    if chat_format.max_calls is not None and found > chat_format.max_calls:
        raise InvalidRequest(
            f"expected at most {chat_format.max_calls} tool call per message for this model, found {found}; "
            f"give each its own message, followed by its result"
        )
    start = [_Special(name) for name in (chat_format.call_start,) if name]
    end = [_Special(name) for name in (chat_format.call_end,) if name]
    return [*start, *_said(message, chat_format), *end, *map(_call, message.tool_calls)]


def _call(call: ToolCall) -> str:
    return f'{{"name": {_json(call.name)}, "parameters": {_json(dict(call.arguments))}}}'


def _turn(role: str, body: Sequence[str | _Special], chat_format: ChatFormat) -> Iterator[str | _Special]:
    yield from _header(role, chat_format)
    yield from body
    yield _Special(chat_format.end_of_turn)


def _header(role: str, chat_format: ChatFormat) -> Iterator[str | _Special]:
    yield _Special(chat_format.header_start)
    yield role
    yield _Special(chat_format.header_end)
    yield "\n\n"


def _describe(tools: Sequence[Mapping[str, object]]) -> str:
    return TOOLS_PROMPT + "".join(_json(dict(tool), indent=4) + "\n\n" for tool in tools)


def _json(value: object, indent: int | None = None) -> str:
    """Write JSON as the templates do: characters as they are, keys in their order."""
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"expected tools and tool calls made of JSON values, found {error}; send JSON") from error
