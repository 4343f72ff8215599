"""What is asked: a fixed list of requests, the same in every process and every run."""

from __future__ import annotations

import random
from dataclasses import dataclass

from protos.inference.v1 import inference_pb2 as pb

_PROMPT_TOKENS = (8, 40)
_VOCABULARY = (3, 1000)
"""Ids to draw prompts from: ordinary tokens in every model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request; equal requests are answered alike."""

    number: int
    """Its place in the list."""
    prompt_ids: tuple[int, ...]
    """Token ids."""
    max_tokens: int
    """Tokens to generate, exactly: the model's end tokens are ignored."""
    seed: int | None
    """None: the likeliest token each time."""
    logprobs: int | None
    """Alternatives to report; None: no logprobs."""

    def message(self) -> pb.GenerateRequest:
        """Return it as it is sent."""
        sampling = (
            pb.Sampling(temperature=0)
            if self.seed is None
            else pb.Sampling(temperature=0.8, top_p=0.95, top_k=0, seed=self.seed)
        )
        return pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=self.prompt_ids),
            sampling=sampling,
            stopping=pb.Stopping(max_tokens=self.max_tokens, ignore_eos=True),
            logprobs=self.logprobs,
        )


def make_requests(count: int, max_tokens: int) -> list[Request]:
    """Return the first `count` requests: half greedy, half sampled, a quarter with logprobs.

    Args:
        count: how many.
        max_tokens: of the longest; the shortest has half as many.
    """
    draw = random.Random(20)
    requests = []
    for number in range(count):
        length = draw.randint(*_PROMPT_TOKENS)
        requests.append(
            Request(
                number=number,
                prompt_ids=tuple(draw.randrange(*_VOCABULARY) for _ in range(length)),
                max_tokens=draw.randint((max_tokens + 1) // 2, max_tokens),
                seed=None if number % 2 == 0 else number,
                logprobs=1 if number % 8 in (2, 5) else None,
            )
        )
    return requests
