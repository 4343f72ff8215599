"""What the two endpoints have in common: from a checked request and its events to JSON objects."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from cluster.openai.bodies import CommonBody
from cluster.openai.token_names import TokenNames
from cluster.request_id import RequestId
from cluster.served_model import ServedModel
from cluster.service_events import Delta, Finished, FinishReason, ScoredToken, ServiceEvent, Started, Usage
from cluster.validation import CompletionRequest


class Answer(Protocol):
    """One request of one endpoint, parsed and checked, and how its answer is written."""

    request: CompletionRequest
    stream: bool

    def chunks(self, event: ServiceEvent) -> Iterator[dict[str, Any]]:
        """Yield the chunks of a streamed answer that an event brings."""
        ...

    def whole(self, outcome: Outcome) -> dict[str, Any]:
        """Return the answer in one object."""
        ...


class Endpoint(Protocol):
    """An endpoint's first half: bytes in, a checked request out."""

    name: str
    """Its label in metrics."""

    def parse(self, data: bytes, model: ServedModel, request_id: RequestId) -> Answer:
        """Parse a body, turn its text to tokens and check it. Blocks for as long as that takes.

        Args:
            data: the body.
            model: what is served.
            request_id: the request's name.

        Raises:
            RequestError: something is wrong with it.
        """
        ...


@dataclass(kw_only=True, slots=True)
class ChoiceOutcome:
    """Everything one choice said."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[ScoredToken] = field(default_factory=list)
    finish_reason: FinishReason | None = None


@dataclass(kw_only=True, slots=True)
class Outcome:
    """Everything a request's events said."""

    choices: list[ChoiceOutcome]
    prompt_logprobs: tuple[tuple[ScoredToken, ...], ...] = ()
    usage: Usage = field(default_factory=lambda: Usage(prompt_tokens=0, completion_tokens=0, cached_tokens=0))


async def collect(events: AsyncIterator[ServiceEvent], num_choices: int) -> Outcome:
    """Run a request to its end."""
    outcome = Outcome(choices=[ChoiceOutcome() for _ in range(num_choices)])
    async for event in events:
        match event:
            case Started():
                outcome.prompt_logprobs = event.prompt_logprobs
            case Delta():
                choice = outcome.choices[event.choice]
                choice.text += event.text
                choice.token_ids.extend(event.token_ids)
                choice.logprobs.extend(event.logprobs)
                choice.finish_reason = event.finish_reason
            case Finished():
                outcome.usage = event.usage
    return outcome


class Envelope:
    """The fields around the choices, alike in every object of one answer.

    Args:
        body: what the client sent.
        model: what is served.
        request_id: the answer's id; unique.
    """

    def __init__(self, body: CommonBody, model: ServedModel, request_id: str) -> None:
        self.request_id = request_id
        self.names = TokenNames(model.tokenizer, bool(body.return_tokens_as_token_ids))
        self.returns_token_ids = bool(body.return_token_ids) or not model.has_tokenizer
        self._includes_usage = body.includes_usage
        self._head = {
            "id": self.request_id,
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": model.fingerprint,
        }

    def whole(self, kind: str, choices: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        """Return a whole answer."""
        return {**self._head, "object": kind, "choices": choices, "usage": usage_object(usage)}

    def chunk(self, kind: str, choice: dict[str, Any]) -> dict[str, Any]:
        """Return a chunk of a streamed answer."""
        usage = {"usage": None} if self._includes_usage else {}
        return {**self._head, "object": kind, "choices": [choice], **usage}

    def last_chunks(self, kind: str, event: Finished) -> Iterator[dict[str, Any]]:
        """Yield the chunk of usage where the client asked for it."""
        if self._includes_usage:
            yield {**self._head, "object": kind, "choices": [], "usage": usage_object(event.usage)}


def usage_object(usage: Usage) -> dict[str, Any]:
    """Return the `usage` of an answer."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
