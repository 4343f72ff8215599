"""What the command line said, and the settings it means."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.bench.duration_text import parse_duration
from cluster.bench.lengths import parse_lengths
from cluster.bench.settings import ClosedLoop, EndpointSettings, OpenLoop, PromptSettings, Replay, Settings
from cluster.bench.slo import parse_slo
from protos.errors import InvalidRequest

DEFAULT_REQUESTS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options by their names, as they were written; None: not given. `herd bench --help` says what they mean."""

    grpc: str | None = None
    url: str | None = None
    model: str | None = None
    api_key: str | None = None
    chat: bool = False
    concurrency: int | None = None
    rate: float | None = None
    burstiness: float | None = None
    trace: Path | None = None
    time_scale: float | None = None
    limit: int | None = None
    requests: int | None = None
    duration: str | None = None
    warmup: int = 1
    max_in_flight: int = 1024
    timeout: str = "10m"
    give_up: str = "10s"
    input: str = "128"
    output: str = "64"
    shared_prefix: int = 0
    max_context: int | None = None
    token_ids: str = "100-999"
    prompt_text: str | None = None
    prompt_file: Path | None = None
    temperature: float = 0.0
    stop_at_eos: bool = False
    plain: bool = False
    extra_body: str | None = None
    seed: int = 0
    slo: str | None = None


def read_settings(options: Options) -> Settings:
    """Return what the options mean.

    Raises:
        InvalidRequest: one is malformed, or they contradict each other.
    """
    if options.trace is not None and options.requests is not None:
        raise InvalidRequest("expected --limit with --trace, found --requests: write --limit instead")
    requests = options.requests
    if requests is None and options.duration is None and options.trace is None:
        requests = DEFAULT_REQUESTS
    settings = Settings(
        endpoint=_read_endpoint(options),
        arrival=_read_arrival(options),
        prompts=_read_prompts(options),
        requests=requests,
        duration_s=parse_duration(options.duration, "--duration") if options.duration else None,
        warmup=options.warmup,
        max_in_flight=options.max_in_flight,
        timeout_s=parse_duration(options.timeout, "--timeout"),
        give_up_s=parse_duration(options.give_up, "--give-up"),
        seed=options.seed,
        slo=parse_slo(options.slo) if options.slo else None,
    )
    settings.validate()
    return settings


def _read_endpoint(options: Options) -> EndpointSettings:
    if options.url is not None and options.grpc is not None:
        raise InvalidRequest("expected one target, found --grpc beside --url: leave one of them out")
    return EndpointSettings(
        url=options.url,
        grpc=options.grpc or EndpointSettings().grpc,
        model=options.model,
        api_key=options.api_key,
        is_chat=options.chat,
        temperature=options.temperature,
        ignores_eos=not options.stop_at_eos,
        has_extensions=not options.plain,
        extra_body=_read_object(options.extra_body),
    )


def _read_arrival(options: Options) -> ClosedLoop | OpenLoop | Replay:
    given = {"--concurrency": options.concurrency, "--rate": options.rate, "--trace": options.trace}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise InvalidRequest(f"expected one way to send requests, found {' and '.join(names)}: choose one")
    _require("--burstiness", options.burstiness, "--rate", options.rate)
    _require("--time-scale", options.time_scale, "--trace", options.trace)
    _require("--limit", options.limit, "--trace", options.trace)
    if options.rate is not None:
        burstiness = 1.0 if options.burstiness is None else _positive(options.burstiness, "--burstiness")
        return OpenLoop(rate_per_s=_positive(options.rate, "--rate"), burstiness=burstiness)
    if options.trace is not None:
        time_scale = 1.0 if options.time_scale is None else _positive(options.time_scale, "--time-scale")
        return Replay(path=options.trace, time_scale=time_scale, limit=options.limit)
    return ClosedLoop() if options.concurrency is None else ClosedLoop(concurrency=options.concurrency)


def _require(name: str, value: object, needed: str, found: object) -> None:
    if value is not None and found is None:
        raise InvalidRequest(f"{name}: expected {needed} beside it, found none: add it, or leave {name} out")


def _positive(number: float, name: str) -> float:
    if not 0 < number < 1e9:
        raise InvalidRequest(f"{name}: expected a positive number, found {number}: correct it")
    return number


def _read_prompts(options: Options) -> PromptSettings:
    low, dash, high = options.token_ids.partition("-")
    if not (low.isdecimal() and dash and high.isdecimal()):
        raise InvalidRequest(f"--token-ids: expected LOW-HIGH, found {options.token_ids!r}; for example 100-999")
    return PromptSettings(
        input=parse_lengths(options.input, "--input"),
        output=parse_lengths(options.output, "--output"),
        shared_prefix=options.shared_prefix,
        low_id=int(low),
        high_id=int(high),
        texts=_read_texts(options.prompt_text, options.prompt_file),
        max_context=options.max_context,
    )


def _read_texts(text: str | None, path: Path | None) -> tuple[str, ...]:
    if path is None:
        return () if text is None else (text,)
    if text is not None:
        raise InvalidRequest("expected one source of prompts, found --prompt-text beside --prompt-file: choose one")
    try:
        lines = tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"--prompt-file: expected a text file, found {path}: {error}") from error
    if not lines:
        raise InvalidRequest(f"--prompt-file: expected a prompt on each line, found none in {path}: add one")
    return lines


def _read_object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text) if text else {}
    except ValueError as error:
        raise InvalidRequest(f"--extra-body: expected a JSON object, found {text!r}: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"--extra-body: expected a JSON object, found {text!r}: correct it")
    return value
