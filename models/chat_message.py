"""What a conversation is, before any model's format: plain data that callers build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from protos.errors import InvalidRequest

ROLES = ("system", "user", "assistant", "tool", "ipython")
"""Who can speak; "ipython" is Llama's own word for "tool"."""


@dataclass(frozen=True, slots=True)
class Text:
    """Words in a message made of parts."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """Place of an image in a message made of parts; its pixels travel elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """A call the assistant made."""

    name: str
    """Function that was called."""
    arguments: Mapping[str, object]
    """What JSON it was called with, parsed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatMessage:
    """One turn.

    Raises:
        InvalidRequest: the role is unknown, or one other than the assistant makes calls.
    """

    role: str
    """One of ROLES."""
    content: str | tuple[Text | Image, ...] = ""
    """What was said; never parsed for special tokens."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls that follow the content; the assistant's only."""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InvalidRequest(
                f"expected a message's role to be one of {', '.join(ROLES)}, found {self.role!r}; use one of those"
            )
        if self.tool_calls and self.role != "assistant":
            raise InvalidRequest(
                f"expected tool calls in assistant messages only, found some from {self.role!r}; leave them out"
            )

    @property
    def parts(self) -> tuple[Text | Image, ...]:
        """The content as parts."""
        return (Text(self.content),) if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        """The words of a message that can hold nothing else.

        Raises:
            InvalidRequest: it holds an image.
        """
        words = [part.text for part in self.parts if isinstance(part, Text)]
        if len(words) < len(self.parts):
            raise InvalidRequest(f"expected only text in this {self.role} message, found an image; leave it out")
        return "".join(words)
