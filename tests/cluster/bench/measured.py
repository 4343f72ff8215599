"""Measurements and results made up of round numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from cluster.bench.lengths import parse_lengths
from cluster.bench.measurement import CallFailed, Measurement, Status
from cluster.bench.session import Result
from cluster.bench.settings import ClosedLoop, EndpointSettings, PromptSettings, Settings
from cluster.bench.target import ServerFacts


def answered(
    sent_s: float, messages: Sequence[tuple[float, int | None]], *, end_s: float | None = None, **fields: Any
) -> Measurement:
    """A request that was answered whole: (seconds, tokens) of each message."""
    found = Measurement(
        **{"index": 0, "prompt_tokens": 10, "max_tokens": 3, "sent_s": sent_s, "status": Status.OK, **fields}
    )
    for now_s, tokens in messages:
        found.add_message(now_s, tokens)
    found.end_s = messages[-1][0] if end_s is None else end_s
    return found


def failed(sent_s: float, end_s: float, kind: str = "HTTP 500", message: str = "oops") -> Measurement:
    error = CallFailed(kind, message)
    return answered(sent_s, [(end_s, 1)], status=Status.FAILED, error=error)


def not_sent(at_s: float) -> Measurement:
    return Measurement(
        index=0, prompt_tokens=10, max_tokens=3, scheduled_s=at_s, sent_s=at_s, end_s=at_s, status=Status.NOT_SENT
    )


def settings(**changes: Any) -> Settings:
    """Settings of a short closed loop."""
    endpoint = EndpointSettings(**changes.pop("endpoint", {}))
    prompts = PromptSettings(input=parse_lengths("8", "-i"), output=parse_lengths("3", "-o"), low_id=32, high_id=99)
    prompts = replace(prompts, **changes.pop("prompts", {}))
    fields = {"arrival": ClosedLoop(concurrency=2), "requests": 4, "timeout_s": 30.0, "warmup": 0, **changes}
    return Settings(endpoint=endpoint, prompts=prompts, **fields)


def result(measurements: Sequence[Measurement], **changes: Any) -> Result:
    """What a run found that measured these."""
    fields = {
        "settings": settings(),
        "facts": ServerFacts(model="tiny", context_length=128, description="gRPC localhost:9000"),
        "started_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "duration_s": 4.0,
        "measurements": list(measurements),
        "num_clipped": 0,
        "lags_s": [0.001, 0.001],
        "cpu_cores": 0.25,
        "is_interrupted": False,
        "gave_up": False,
    }
    return Result(**{**fields, **changes})
