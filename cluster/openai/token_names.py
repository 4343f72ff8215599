"""How tokens and their logprobs are written in OpenAI's two formats."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from cluster.service_events import LikelyToken, ScoredToken
from models.tokenizer import Tokenizer

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot carry; the value OpenAI and vLLM use."""


class TokenNames:
    """Writes tokens as text, or as "token_id:123" where there is no text or ids are asked for.

    Args:
        tokenizer: the model's; None: ids.
        as_ids: write ids all the same.
    """

    def __init__(self, tokenizer: Tokenizer | None, as_ids: bool) -> None:
        self._tokenizer = None if as_ids else tokenizer

    def name(self, token: ScoredToken | LikelyToken) -> str:
        """Return a token's text, the name of a special token, or its id."""
        if self._tokenizer is None:
            return f"token_id:{token.token_id}"
        return self._tokenizer.decode([token.token_id], skip_special=False) or f"token_id:{token.token_id}"

    def chat_logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        """Return a chat choice's `logprobs`."""
        content = [
            {**self._chat_token(token), "top_logprobs": [self._chat_token(each) for each in token.top]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _chat_token(self, token: ScoredToken | LikelyToken) -> dict[str, Any]:
        return {"token": self.name(token), "logprob": finite(token.logprob), "bytes": list(token.text)}

    def top(self, token: ScoredToken) -> dict[str, float]:
        """Return the likeliest tokens' logprobs by name, and the token's own, as completions report them."""
        named: dict[str, float] = {}
        for each in token.top:
            named.setdefault(self.name(each), finite(each.logprob))  # halves of characters may share a name
        named[self.name(token)] = finite(token.logprob)
        return named

    def prompt_logprobs(self, tokens: Sequence[ScoredToken]) -> list[dict[str, Any] | None]:
        """Return a choice's `prompt_logprobs` in vLLM's format: per token, by id; null for the first."""
        return [None, *(self._ranked(token) for token in tokens[1:])]

    def _ranked(self, token: ScoredToken) -> dict[str, Any]:
        ranked: dict[str, Any] = {str(token.token_id): self._prompt_entry(token, None)}
        for rank, each in enumerate(token.top, start=1):
            ranked[str(each.token_id)] = self._prompt_entry(each, rank)
        return ranked

    def _prompt_entry(self, token: ScoredToken | LikelyToken, rank: int | None) -> dict[str, Any]:
        return {"logprob": finite(token.logprob), "rank": rank, "decoded_token": self.name(token)}


class LogprobsColumn:
    """Builds the `logprobs` of one completions choice, piece by piece: `text_offset` counts through all pieces."""

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def add(self, tokens: Sequence[ScoredToken], first_has_none: bool = False) -> dict[str, list[Any]]:
        """Return the object for the next tokens.

        Args:
            tokens: those that follow all earlier ones.
            first_has_none: the first token begins the prompt, so that nothing predicted it.
        """
        columns: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for index, token in enumerate(tokens):
            has_none = first_has_none and index == 0
            columns["tokens"].append(self._names.name(token))
            columns["token_logprobs"].append(None if has_none else finite(token.logprob))
            columns["top_logprobs"].append(None if has_none else self._names.top(token))
            columns["text_offset"].append(self._offset)
            self._offset += len(self._decoder.decode(token.text))
        return columns


def finite(logprob: float) -> float:
    """Return a logprob that JSON can carry."""
    return max(logprob, LOWEST_LOGPROB)
