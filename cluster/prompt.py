"""What a caller wants continued, as token ids: text, a conversation, or ids as they are."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.served_model import ServedModel
from cluster.validation import invalid, shown
from models.chat import render_chat
from models.chat_message import ROLES, ChatMessage
from models.tokenizer import Tokenizer
from protos.errors import InvalidRequest


def text_prompt(text: str, model: ServedModel) -> tuple[int, ...]:
    """Return the ids of a text, after the beginning-of-text token.

    Raises:
        InvalidRequest: the text is empty, or the model has no tokenizer.
    """
    tokenizer = _tokenizer(model, "prompt")
    if not text:
        raise invalid("prompt", "at least one character", "none", "send a prompt that is not empty")
    start = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    return (*start, *tokenizer.encode(text))


def chat_prompt(messages: Sequence[ChatMessage], model: ServedModel) -> tuple[int, ...]:
    """Return the ids of a conversation that the assistant is to continue.

    Raises:
        InvalidRequest: there is no message, or the model has no tokenizer or no chat tokens.
    """
    tokenizer = _tokenizer(model, "messages")
    try:
        return tuple(render_chat(messages, tokenizer))
    except InvalidRequest as error:
        raise InvalidRequest(error.message, metadata={"param": "messages"}) from error


def check_role(name: str, role: object) -> str:
    """Return a message's role, when it is one.

    Raises:
        InvalidRequest: it is not.
    """
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(name, f"one of {', '.join(ROLES)}", shown(role), "use one of those")
    return role


def _tokenizer(model: ServedModel, name: str) -> Tokenizer:
    if model.tokenizer is None:
        raise invalid(
            name,
            f"token ids, as model {model.name!r} has no tokenizer",
            "text",
            "send a completions prompt as a list of token ids",
        )
    return model.tokenizer
