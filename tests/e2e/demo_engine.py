"""What the demo model generates in an engine of this process, without anything of the cluster."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from pathlib import Path

import torch

from experts.weights import ExpertWeights
from models.checkpoint import open_checkpoint
from models.llama4.decoder import load_decoder
from router.engine import Engine
from router.limits import EngineLimits
from router.request import Ended, GenerationRequest, SamplingParams, TokenChosen
from router.transport.local import LocalTransport

WAIT_S = 120


def greedy_tokens(folder: Path, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    """Return what follows each prompt."""
    checkpoint = open_checkpoint(folder)
    weights = ExpertWeights.load(checkpoint, range(checkpoint.config.num_experts), torch.float32)
    decoder = load_decoder(checkpoint, dtype=torch.float32)
    limits = EngineLimits(context_length=checkpoint.config.max_positions, kv_bytes=200_000_000)
    engine = Engine(decoder, LocalTransport(weights.run), limits)
    engine.start()
    try:
        return [_tokens(engine, prompt, max_tokens) for prompt in prompts]
    finally:
        engine.stop()


def _tokens(engine: Engine, prompt: Sequence[int], max_tokens: int) -> list[int]:
    events: queue.Queue = queue.Queue()
    request = GenerationRequest(
        request_id="one", prompt_ids=tuple(prompt), max_tokens=max_tokens, sampling=SamplingParams(temperature=0.0)
    )
    engine.submit(request, events.put)
    tokens = []
    while not isinstance(event := events.get(timeout=WAIT_S), Ended):
        tokens += [event.token_id] if isinstance(event, TokenChosen) else []
    assert event.reason == "length", event
    return tokens
