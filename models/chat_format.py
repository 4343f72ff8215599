"""How each Llama family writes a conversation down: the tokens around a turn, and what happens to its text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatFormat:
    """The special tokens and habits of one family's template."""

    header_start: str
    """Opens a turn, before the role."""
    header_end: str
    """Ends the role."""
    end_of_turn: str
    """Ends a turn."""
    call_start: str | None
    """Stands before the content of a turn with tool calls; None: nothing does."""
    call_end: str | None
    """Stands between that content and the calls; None: nothing does."""
    image: str | None
    """Marks where an image belongs; None: the format has no images."""
    strips_every_turn: bool
    """Blanks around the words of every turn are dropped; else only those of a leading system turn are."""
    max_calls: int | None
    """Most tool calls in a turn; None: no limit."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """The special tokens without which no conversation can be written."""
        return ("<|begin_of_text|>", self.header_start, self.header_end, self.end_of_turn)


LLAMA4_CHAT = ChatFormat(
    header_start="<|header_start|>",
    header_end="<|header_end|>",
    end_of_turn="<|eot|>",
    call_start="<|python_start|>",
    call_end="<|python_end|>",
    image="<|image|>",
    strips_every_turn=False,
    max_calls=None,
)
"""Source: the chat template in meta-llama/Llama-4-Scout-17B-16E-Instruct on Hugging Face."""

LLAMA3_CHAT = ChatFormat(
    header_start="<|start_header_id|>",
    header_end="<|end_header_id|>",
    end_of_turn="<|eot_id|>",
    call_start=None,
    call_end=None,
    image=None,
    strips_every_turn=True,
    max_calls=1,
)
"""Source: the Llama 3.1 template on Hugging Face, without the system turn with two dates that it puts before all."""

TOOLS_PROMPT = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    "answers the given prompt.\n\n"
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
    "Do not use variables.\n\n"
)
"""Both families put it and the tools before the first words of the user."""
