"""From what a caller wrote, over either API, to a request that is known to make sense.

Both APIs fill in `RequestFields`; `check_request` turns them into a `CompletionRequest`; `sequences` cuts that into
what routers generate. Wrong types are the APIs' own business (JSON and protobuf differ there), wrong values are here.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.limits import (
    MAX_CHOICES,
    MAX_LOGPROBS,
    MAX_PROMPTS,
    MAX_SEQUENCES,
    MAX_STOP_CHARACTERS,
    MAX_STOP_IDS,
    MAX_STOP_TEXTS,
)
from cluster.served_model import ServedModel
from protos.errors import ContextTooLong, InvalidRequest, NotFound
from router.request import GenerationRequest, SamplingParams
from router.sampling_bounds import check_sampling
from router.seed import choice_seed

SAMPLING_FIELDS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
SEEDS = range(-9_223_372_036_854_776_000, 18_446_744_073_709_552_000 + 1)
"""Those of 64 bits, signed or not, and what JavaScript, whose numbers have 53 bits, writes for the least and largest of
them. OpenAI's API page gives the same least one."""
_STANDARD_SHARE = 4
SHOWN_CHARACTERS = 80
"""How much of a wrong value a message repeats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestFields:
    """What a caller wrote, in one spelling for both APIs; None means left out."""

    prompts: Sequence[tuple[int, ...]]
    """Token ids of each prompt."""
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    """Any 64 bits, signed or not, in `SEEDS`; None: random."""
    max_tokens: int | None = None
    default_max_tokens: int | None = None
    """Stands in for max_tokens as far as the context allows; None: what the context leaves."""
    stop: Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    num_choices: int = 1
    priority: int = 0
    timeout_s: float | None = None
    """Seconds the caller will wait; None: as long as the front door allows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionRequest:
    """A checked request: some prompts, each continued some times."""

    request_id: str
    """Unique in the cluster."""
    prompts: tuple[tuple[int, ...], ...]
    """Token ids, at least one prompt of at least one token."""
    num_choices: int
    """Continuations of each prompt."""
    max_tokens: tuple[int, ...]
    """Most tokens to generate, one number for each prompt."""
    sampling: SamplingParams
    """How to choose tokens; choice c of every prompt gets `choice_seed(seed, c)`."""
    stop: tuple[str, ...] = ()
    """Texts that end a choice; not returned."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end a choice; not returned."""
    logprobs: int | None = None
    """Likeliest alternatives to report per generated token; None: report no logprobs."""
    prompt_logprobs: int | None = None
    """The same for the prompts' tokens."""
    priority: int = 0
    """Lower numbers are served first."""
    timeout_s: float | None = None
    """Seconds the caller will wait; None: as long as the front door allows."""

    @property
    def longest(self) -> int:
        """Return the tokens that its longest sequence may get, prompt and output together."""
        return max(len(prompt) + most for prompt, most in zip(self.prompts, self.max_tokens, strict=True))

    @property
    def num_sequences(self) -> int:
        """Count the sequences that routers run for this request."""
        return len(self.prompts) * self.num_choices

    @property
    def num_prompt_tokens(self) -> int:
        """Count the prompts' tokens, each prompt once."""
        return sum(len(prompt) for prompt in self.prompts)


def check_model_name(name: str | None, model: ServedModel) -> None:
    """Accept the served model's name, or none at all.

    Raises:
        NotFound: it is another model's.
    """
    if name and name != model.name:
        raise NotFound(
            f"expected model {model.name!r}, the only one served here, found {shown(name)}; send that name or none",
            metadata={"param": "model"},
        )


def check_request(fields: RequestFields, model: ServedModel, request_id: str) -> CompletionRequest:
    """Check every field against the model and fill in its defaults.

    Args:
        fields: what the caller wrote.
        model: what is served.
        request_id: name of the request in logs; unique.

    Raises:
        InvalidRequest: a field is out of range or contradicts another.
        ContextTooLong: a prompt, or a prompt and its max_tokens, do not fit the model's context.
    """
    _check_count("n", fields.num_choices, 1, MAX_CHOICES)
    _check_count("prompt", len(fields.prompts), 1, MAX_PROMPTS, unit="prompts")
    _check_count("n", len(fields.prompts) * fields.num_choices, 1, MAX_SEQUENCES, unit="prompts times n")
    for name, count in (("logprobs", fields.logprobs), ("prompt_logprobs", fields.prompt_logprobs)):
        if count is not None:
            _check_count(name, count, 0, MAX_LOGPROBS)
    for prompt in fields.prompts:
        check_token_ids("prompt", prompt, model)
    _check_count("priority", fields.priority, -(2**31), 2**31 - 1)
    _check_stop(fields, model)
    return CompletionRequest(
        request_id=request_id,
        prompts=tuple(fields.prompts),
        num_choices=fields.num_choices,
        max_tokens=tuple(_max_tokens(fields, len(prompt), model) for prompt in fields.prompts),
        sampling=_sampling(fields, model),
        stop=tuple(dict.fromkeys(fields.stop)),
        stop_ids=frozenset(fields.stop_ids) | (frozenset() if fields.ignore_eos else frozenset(model.config.eos_ids)),
        logprobs=fields.logprobs,
        prompt_logprobs=fields.prompt_logprobs,
        priority=fields.priority,
        timeout_s=fields.timeout_s,
    )


def sequences(
    request: CompletionRequest, timeout_s: float, traceparent: str = "", tenant: str = "", even_share: bool = False
) -> list[GenerationRequest]:
    """Cut a request into what routers generate: all choices of the first prompt, then of the next.

    Args:
        request: a checked request.
        timeout_s: seconds until the routers give up.
        traceparent: of the request's span; empty: it has none.
        tenant: on whose behalf routers generate.
        even_share: whether the tenant is held to an even share of steps.
    """
    return [
        GenerationRequest(
            request_id=f"{request.request_id}-{index * request.num_choices + choice}",
            prompt_ids=prompt,
            max_tokens=request.max_tokens[index],
            sampling=replace(request.sampling, seed=choice_seed(request.sampling.seed, choice)),
            stop_ids=request.stop_ids,
            logprobs=request.logprobs,
            # The prompt's logprobs are the same for every choice: ask once.
            prompt_logprobs=request.prompt_logprobs if choice == 0 else None,
            priority=request.priority,
            tenant=tenant,
            even_share=even_share,
            timeout_s=timeout_s,
            traceparent=traceparent,
        )
        for index, prompt in enumerate(request.prompts)
        for choice in range(request.num_choices)
    ]


def check_token_ids(name: str, ids: Sequence[int], model: ServedModel) -> None:
    """Refuse no ids, too many ids, and ids outside the vocabulary.

    Raises:
        InvalidRequest: there is none, or one is out of range.
        ContextTooLong: they leave no room for an answer.
    """
    if not ids:
        raise invalid(name, "at least one token", "none", "send a prompt that is not empty")
    if len(ids) >= model.context_length:
        raise ContextTooLong(
            f"{name}: expected at most {model.context_length - 1} tokens, one less than the context of "
            f"{model.context_length}, found {len(ids)}; shorten it, or {_way_to_longer(model)}",
            metadata={"param": name, "context_length": str(model.context_length), "found": str(len(ids))},
        )
    vocab_size = model.config.vocab_size
    if min(ids) < 0 or max(ids) >= vocab_size:
        position, found = next((at, each) for at, each in enumerate(ids) if not 0 <= each < vocab_size)
        raise invalid(
            name,
            f"token ids in [0, {vocab_size})",
            f"{shown(found)} at position {position}",
            "use the tokenizer of this model",
        )


def check_max_tokens(max_tokens: int) -> None:
    """Refuse a number of tokens that is none.

    Raises:
        InvalidRequest: it is less than 1.
    """
    if max_tokens < 1:
        raise invalid("max_tokens", "at least 1", shown(max_tokens), "raise it, or leave it out")


def invalid(name: str, expected: str, found: str, remedy: str) -> InvalidRequest:
    """Build an InvalidRequest about one field."""
    return InvalidRequest(f"{name}: expected {expected}, found {found}; {remedy}", metadata={"param": name})


def shown(value: object) -> str:
    """Return a value as a message repeats it: short and on one line, however large it is."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"  # str() of a huge one is slow and may be refused
    if isinstance(value, str | list | dict) and len(value) > SHOWN_CHARACTERS:
        kind = {str: "text", list: "list", dict: "object"}[type(value)]
        return f"a {kind} of length {len(value)}"
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def _check_count(name: str, count: int, low: int, high: int, unit: str = "") -> None:
    if not low <= count <= high:
        wanted = f"{low} to {high}" + (f" {unit}" if unit else "")
        raise invalid(name, wanted, shown(count), "choose a number in that range")


def _check_stop(fields: RequestFields, model: ServedModel) -> None:
    if len(fields.stop) > MAX_STOP_TEXTS:
        raise invalid("stop", f"at most {MAX_STOP_TEXTS} texts", str(len(fields.stop)), "send fewer")
    for text in fields.stop:
        if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            raise invalid(
                "stop", f"texts of 1 to {MAX_STOP_CHARACTERS} characters", f"one of {len(text)}", "drop or shorten it"
            )
    if fields.stop and not model.has_tokenizer:
        raise invalid("stop", "none, as this model has no tokenizer", "some", "send stop_token_ids instead")
    if len(fields.stop_ids) > MAX_STOP_IDS:
        raise invalid("stop_token_ids", f"at most {MAX_STOP_IDS} ids", str(len(fields.stop_ids)), "send fewer")
    if fields.stop_ids:
        check_token_ids("stop_token_ids", fields.stop_ids, model)


def _max_tokens(fields: RequestFields, prompt_length: int, model: ServedModel) -> int:
    if fields.max_tokens is None:
        room = _room(prompt_length, model)
        return room if fields.default_max_tokens is None else min(room, fields.default_max_tokens)
    room = model.context_length - prompt_length
    check_max_tokens(fields.max_tokens)
    if fields.max_tokens > room:
        raise ContextTooLong(
            f"max_tokens: expected at most {room}, what a prompt of {prompt_length} tokens leaves of the context of "
            f"{model.context_length}, found {shown(fields.max_tokens)}; lower it, leave it out or shorten the prompt, "
            f"or {_way_to_longer(model)}",
            metadata={
                "param": "max_tokens",
                "context_length": str(model.context_length),
                "found": shown(prompt_length + fields.max_tokens),
            },
        )
    return fields.max_tokens


def _room(prompt_length: int, model: ServedModel) -> int:
    """Return the tokens that a prompt without max_tokens may get.

    Where long requests have routers of their own, it stays with the others if a quarter of their length is left.
    """
    if model.long_from is not None:
        room = model.long_from - 1 - prompt_length
        if room >= max(model.long_from // _STANDARD_SHARE, 1):
            return room
    return model.context_length - prompt_length


def _way_to_longer(model: ServedModel) -> str:
    most = model.config.max_positions
    if model.context_length >= most:
        return f"serve a model that was made for more than {most}"
    return f"have whoever runs this server raise {model.raised_by}, up to the model's {most}"


def _sampling(fields: RequestFields, model: ServedModel) -> SamplingParams:
    given = {name: getattr(fields, name) for name in SAMPLING_FIELDS if getattr(fields, name) is not None}
    defaults = {
        "temperature": model.defaults.temperature,
        "top_p": model.defaults.top_p,
        "top_k": model.defaults.top_k or 0,
    }
    seed = secrets.randbits(64) if fields.seed is None else fields.seed
    if seed not in SEEDS:
        raise invalid("seed", "a 64-bit integer", shown(seed), "choose a smaller one")
    sampling = SamplingParams(**{**defaults, **given, "seed": seed % 2**64})
    try:
        check_sampling(sampling)
    except InvalidRequest as error:
        raise InvalidRequest(error.message, metadata={"param": error.message.partition(":")[0]}) from error
    return sampling
