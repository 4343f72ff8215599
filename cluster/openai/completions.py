"""/v1/completions: prompts as text or token ids, continued as they stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cluster.openai.answer import Answer, Envelope, Outcome
from cluster.openai.bodies import CompletionsBody, parse_body
from cluster.openai.token_names import LogprobsColumn
from cluster.prompt import text_prompt
from cluster.request_id import RequestId
from cluster.served_model import ServedModel
from cluster.service_events import Delta, Finished, ScoredToken, ServiceEvent, Started
from cluster.validation import check_model_name, check_request, invalid, shown

KIND = "text_completion"
DEFAULT_MAX_TOKENS = 16
"""What OpenAI and vLLM give a completions request that names no max_tokens."""


class CompletionsEndpoint:
    """Reads completions requests."""

    name = "completions"

    def parse(self, data: bytes, model: ServedModel, request_id: RequestId) -> Answer:
        """Parse and check a body; see Endpoint."""
        body = parse_body(CompletionsBody, data)
        check_model_name(body.model, model)
        return CompletionsAnswer(body, model, request_id)


class CompletionsAnswer:
    """One completions request and how its answer is written.

    Args:
        body: what the client sent.
        model: what is served.
        request_id: the request's name.

    Raises:
        RequestError: something is wrong with the request.
    """

    def __init__(self, body: CompletionsBody, model: ServedModel, request_id: RequestId) -> None:
        texts, prompts = read_prompts(body.prompt, model)
        if body.echo and body.logprobs is not None:
            # Echoed tokens get logprobs like the new ones.
            body = body.model_copy(update={"prompt_logprobs": max(body.logprobs, body.prompt_logprobs or 0)})
        self._envelope = Envelope(body, model, request_id.unique("cmpl"))
        fields = body.fields(prompts, DEFAULT_MAX_TOKENS, body.logprobs)
        self.request = check_request(fields, model, self._envelope.request_id)
        self.stream = bool(body.stream)
        self._wants_logprobs = body.logprobs is not None
        self._wants_prompt_logprobs = body.prompt_logprobs is not None
        self._echo = [_text(*each, model) for each in zip(texts, prompts, strict=True)] if body.echo else None
        self._columns = [LogprobsColumn(self._envelope.names) for _ in range(self.request.num_sequences)]

    def whole(self, outcome: Outcome) -> dict[str, Any]:
        """Return the answer in one object."""
        choices = []
        for index, choice in enumerate(outcome.choices):
            prompt = index // self.request.num_choices
            scored = outcome.prompt_logprobs[prompt] if outcome.prompt_logprobs else ()
            echo = self._echo_text(prompt)
            written = self._choice(index, echo + choice.text, choice.token_ids, choice.finish_reason)
            if self._wants_logprobs:
                echoed = scored if self._echo else ()
                written["logprobs"] = self._columns[index].add((*echoed, *choice.logprobs), bool(echoed))
            if self._wants_prompt_logprobs:
                written["prompt_logprobs"] = self._envelope.names.prompt_logprobs(scored)
            choices.append(written)
        return self._envelope.whole(KIND, choices, outcome.usage)

    def chunks(self, event: ServiceEvent) -> Iterator[dict[str, Any]]:
        """Yield the chunks of a streamed answer that an event brings."""
        match event:
            case Started() if self._echo or self._wants_prompt_logprobs:
                yield from self._prompt_chunks(event)
            case Delta():
                if event.text or event.finish_reason or self._wants_logprobs or self._envelope.returns_token_ids:
                    written = self._choice(event.choice, event.text, event.token_ids, event.finish_reason)
                    if self._wants_logprobs:
                        written["logprobs"] = self._columns[event.choice].add(event.logprobs)
                    yield self._envelope.chunk(KIND, written)
            case Finished():
                yield from self._envelope.last_chunks(KIND, event)

    def _prompt_chunks(self, event: Started) -> Iterator[dict[str, Any]]:
        for index in range(self.request.num_sequences):
            prompt = index // self.request.num_choices
            scored: Sequence[ScoredToken] = event.prompt_logprobs[prompt] if event.prompt_logprobs else ()
            written = self._choice(index, self._echo_text(prompt), (), None)
            if self._echo and self._wants_logprobs:
                written["logprobs"] = self._columns[index].add(scored, first_has_none=True)
            if self._wants_prompt_logprobs:
                written["prompt_logprobs"] = self._envelope.names.prompt_logprobs(scored)
            yield self._envelope.chunk(KIND, written)

    def _echo_text(self, prompt: int) -> str:
        return self._echo[prompt] if self._echo else ""

    def _choice(self, index: int, text: str, token_ids: Sequence[int], finish_reason: str | None) -> dict[str, Any]:
        written: dict[str, Any] = {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}
        if self._envelope.returns_token_ids:
            written["token_ids"] = list(token_ids)
        return written


def _text(text: str | None, ids: Sequence[int], model: ServedModel) -> str:
    """Return a prompt's text as echo repeats it."""
    if text is not None:
        return text
    return "" if model.tokenizer is None else model.tokenizer.decode(ids)


def read_prompts(prompt: object, model: ServedModel) -> tuple[list[str | None], list[tuple[int, ...]]]:
    """Return each prompt's text, None where the client sent ids, and its token ids.

    Args:
        prompt: text, a list of texts, token ids, or a list of lists of token ids.
        model: what is served.

    Raises:
        InvalidRequest: it is none of these, or empty.
    """
    if isinstance(prompt, str):
        prompt = [prompt]
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        prompt = [prompt]
    if not isinstance(prompt, list):
        raise _bad_prompt(shown(prompt))
    if not prompt:
        raise invalid("prompt", "at least one token", "none", "send a prompt that is not empty")
    if all(isinstance(each, str) for each in prompt):
        return list(prompt), [text_prompt(each, model) for each in prompt]
    for each in prompt:
        if not isinstance(each, list):
            raise _bad_prompt(f"{shown(each)} in it")
        wrong = next((token for token in each if type(token) is not int), None)
        if wrong is not None or None in each:
            raise _bad_prompt(f"{shown(wrong)} among token ids")
    ids = [tuple(each) for each in prompt]
    return [None for _ in ids], ids


def _bad_prompt(found: str) -> Exception:
    return invalid(
        "prompt", "text, a list of texts, token ids or a list of lists of token ids", found, "send one of these"
    )
