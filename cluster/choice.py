"""One choice of a request: a router's events in, deltas with text out."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.service_events import Delta, FinishReason, LikelyToken, ScoredToken
from cluster.stream import TextStream
from models.tokenizer import Tokenizer
from protos.errors import InternalError
from router.request import Ended, EngineEvent, PromptDone, PromptProgress, TokenChosen, TokenLogprob


class Choice:
    """Follows one sequence from its prompt to its end.

    Args:
        index: which choice of the request.
        tokenizer: turns tokens to text; None: text stays empty.
        stop: texts that end the choice.
    """

    def __init__(self, index: int, tokenizer: Tokenizer | None, stop: Sequence[str]) -> None:
        self.index = index
        self.num_tokens = 0
        self.num_cached = 0
        self.num_prompt_done = 0
        self.prompt_logprobs: tuple[ScoredToken, ...] = ()
        self.is_accepted = False
        self.prompt_is_done = False
        self.finish_reason: FinishReason | None = None
        self._tokenizer = tokenizer
        self._text = None if tokenizer is None else TextStream(tokenizer, stop)

    def take(self, events: Sequence[EngineEvent]) -> Delta | None:
        """Return what a batch of events adds to the choice; None when nothing a caller sees.

        Events after a stop text are dropped: the sequence is over, though its router may not know it yet.

        Raises:
            ServingError: the sequence ended with an error.
        """
        self.is_accepted = True
        text: list[str] = []
        tokens: list[TokenChosen] = []
        for event in events:
            match event:
                case PromptProgress():
                    self.num_prompt_done = event.num_done
                case PromptDone():
                    self._take_prompt(event)
                case TokenChosen():
                    tokens.append(event)
                    text.append(self._push(event.token_id))
                case Ended():
                    self.finish_reason = _reason(event)
                    text.append(self._text.finish() if self._text else "")
            if self.finish_reason:
                break
        if not tokens and not self.finish_reason:
            return None
        self.num_tokens += len(tokens)
        return Delta(
            choice=self.index,
            text="".join(text),
            token_ids=tuple(token.token_id for token in tokens),
            logprobs=tuple(score(token.logprob, self._tokenizer) for token in tokens if token.logprob),
            finish_reason=self.finish_reason,
        )

    def _take_prompt(self, event: PromptDone) -> None:
        self.prompt_is_done = True
        self.num_cached = event.num_cached
        self.prompt_logprobs = tuple(score(each, self._tokenizer) for each in event.logprobs or ())

    def _push(self, token_id: int) -> str:
        if self._text is None:
            return ""
        delta = self._text.push((token_id,))
        if delta.stopped:
            self.finish_reason = "stop"
        return delta.text


def score(logprob: TokenLogprob, tokenizer: Tokenizer | None) -> ScoredToken:
    """Add the tokens' bytes to a router's logprob."""
    return ScoredToken(
        token_id=logprob.token_id,
        text=_bytes(logprob.token_id, tokenizer),
        logprob=logprob.logprob,
        top=tuple(
            LikelyToken(token_id=token_id, text=_bytes(token_id, tokenizer), logprob=value)
            for token_id, value in logprob.top
        ),
    )


def _bytes(token_id: int, tokenizer: Tokenizer | None) -> bytes:
    return b"" if tokenizer is None else tokenizer.token_bytes(token_id)


def _reason(event: Ended) -> FinishReason:
    if event.reason == "error":
        raise event.error or InternalError("a router ended a sequence with an error it did not name: see its log")
    return event.reason
