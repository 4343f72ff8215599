"""Token ids to text as they come: whole characters only, and nothing from a stop string on."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster.stops import StopMatcher
from models.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What became certain."""

    text: str
    """New text; may be empty."""
    stopped: bool
    """A stop string was reached: nothing follows."""


class TextStream:
    """Text of one choice.

    Everything pushed is in one of three places, in this order:

        sent | may begin a stop string | may begin a character

    so what is held back is at most one character shorter than the longest stop string, and three bytes. The stop
    that ends first wins, and of those that end together the longest; how tokens are grouped makes no difference.

    Args:
        tokenizer: turns ids to bytes; special tokens have none.
        stop: strings that end the text; they are not part of it.

    Raises:
        InvalidRequest: a stop string is empty.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._matcher = StopMatcher(stop) if stop else None
        self._held = ""
        self._stopped = False

    def push(self, token_ids: Iterable[int]) -> TextDelta:
        """Take the next tokens and return the text that no later token can change.

        After a stop string everything is ignored.

        Raises:
            InvalidRequest: an id is out of range.
        """
        if self._stopped:
            return TextDelta("", True)
        data = b"".join(map(self._tokenizer.token_bytes, token_ids))
        return TextDelta(self._release(self._decoder.decode(data)), self._stopped)

    def finish(self) -> str:
        """Return the text held back, when no token follows; a character cut short becomes U+FFFD."""
        if self._stopped:
            return ""
        text = self._release(self._decoder.decode(b"", final=True)) + self._held
        self._held, self._stopped = "", True
        return text

    def _release(self, new: str) -> str:
        """Return what can be sent of the text held back and the new one; keep the rest."""
        if self._matcher is None:
            return new
        text = self._held + new
        for end, character in enumerate(new, start=len(self._held) + 1):
            if matched := self._matcher.feed(character):
                self._held, self._stopped = "", True
                return text[: end - matched]
        certain = len(text) - self._matcher.pending
        self._held = text[certain:]
        return text[:certain]
