"""What a run is told to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.bench.lengths import Lengths
from cluster.bench.slo import Slo
from protos.errors import InvalidRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointSettings:
    """Whom to ask, and how."""

    url: str | None = None
    """Base URL of an OpenAI API, such as http://localhost:8000/v1; None: `grpc` is asked."""
    grpc: str = "localhost:9000"
    """HOST:PORT of Herd's gRPC API."""
    model: str | None = None
    """Name in requests; None: the first that the server lists."""
    api_key: str | None = field(default=None, repr=False)
    """Sent as a bearer token; never written anywhere."""
    is_chat: bool = False
    """Send conversations instead of prompts to continue."""
    temperature: float = 0.0
    """0 picks the likeliest token."""
    ignores_eos: bool = True
    """Answers go on to their full length."""
    has_extensions: bool = True
    """Send fields beyond OpenAI's own: ignore_eos and return_token_ids, which vLLM, SGLang and Herd know."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Further fields of every HTTP request's body; these win over ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClosedLoop:
    """So many clients, each of which asks again once it is answered."""

    concurrency: int = 8
    """Requests at once; at least 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenLoop:
    """Random arrivals that never wait for the server."""

    rate_per_s: float
    """Mean requests per second; positive."""
    burstiness: float = 1.0
    """Shape of the gaps' gamma distribution; 1: Poisson, below: bunches, above: more even."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """Arrivals and lengths of a trace."""

    path: Path
    """Azure's CSV or Mooncake's JSON lines."""
    time_scale: float = 1.0
    """Factor on the trace's times; 0.5 doubles the load. Positive."""
    limit: int | None = None
    """Most rows to replay; None: all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSettings:
    """What is asked."""

    input: Lengths
    """Tokens of prompts; a trace has its own."""
    output: Lengths
    """Tokens of answers; a trace has its own."""
    shared_prefix: int = 0
    """Tokens at the start of prompts that are alike in all of them."""
    low_id: int = 100
    """Smallest token id in prompts."""
    high_id: int = 999
    """Largest token id in prompts; within the vocabulary of nearly every model."""
    texts: tuple[str, ...] = ()
    """Prompts as text; empty: token ids, or random words for a chat."""
    max_context: int | None = None
    """Most tokens of prompt and answer together; longer ones are cut. None: of a trace what the server states."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Everything a run is told."""

    endpoint: EndpointSettings
    """Whom to ask."""
    arrival: ClosedLoop | OpenLoop | Replay
    """When requests are sent."""
    prompts: PromptSettings
    """What they ask."""
    requests: int | None = None
    """Most requests, warm-up aside; None: as many as `duration_s` or the trace allows."""
    duration_s: float | None = None
    """Seconds after which none is sent any more; those in flight are waited for. None: no such end."""
    warmup: int = 1
    """Requests before the run, which do not count; 0: none."""
    max_in_flight: int = 1024
    """Most requests at once in an open loop or a replay; the others are not sent, and counted."""
    timeout_s: float = 600.0
    """Seconds each request has from sending to its end."""
    give_up_s: float = 10.0
    """Seconds without anybody to connect to after which the run ends."""
    seed: int = 0
    """Of everything random: arrivals, lengths, prompts."""
    slo: Slo | None = None
    """What makes a request good; None: goodput is not reported."""

    def validate(self) -> None:
        """Check what can be checked without a server.

        Raises:
            InvalidRequest: settings contradict each other.
        """
        prompts = self.prompts
        shortest = prompts.input.low if prompts.input.stdev is None else prompts.input.mean
        if prompts.shared_prefix >= shortest and not isinstance(self.arrival, Replay):
            raise InvalidRequest(
                f"--shared-prefix: expected fewer tokens than --input {prompts.input.text}, found "
                f"{prompts.shared_prefix}: a prompt needs at least one token of its own"
            )
        if prompts.low_id > prompts.high_id:
            raise InvalidRequest(f"--token-ids: expected LOW-HIGH, found {prompts.low_id}-{prompts.high_id}: swap them")
        if prompts.texts and isinstance(self.arrival, Replay):
            raise InvalidRequest(
                "expected prompts of the trace's lengths, found --prompt-text or --prompt-file: leave one of them out"
            )
        if self.endpoint.url is None and self.endpoint.extra_body:
            raise InvalidRequest("--extra-body: expected --url beside it, found a gRPC target: leave one of them out")
