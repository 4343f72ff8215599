"""Logits and greedy tokens against transformers' fp32 outputs, for every split of the work and every transport.

Tolerance 1e-3: the subtlest known mistake (position temperature off by one) moves a logit by 0.026 or more, and
faithful implementations agree within 4e-5.
"""

from __future__ import annotations

import queue
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.checkpoint import open_checkpoint
from models.llama4.decoder import load_decoder
from router.engine import Engine
from router.forward import Forward
from router.limits import EngineLimits
from router.request import Ended, GenerationRequest, SamplingParams, TokenChosen
from tests.parity.splits import run_in_splits
from tests.parity.transports import open_transport

TOLERANCE = 1e-3
SPLITS = {
    "whole": [40],
    "1x40": [1] * 40,
    "20+1x20": [20] + [1] * 20,
    "20+20": [20, 20],
    "8x5": [8] * 5,
    "5x8": [5] * 8,
    "9+31": [9, 31],
    "7+1+32": [7, 1, 32],
}
# (golden, layout, how the experts are reached); "every" means one replica per expert.
CASES = [
    (golden, layout, reach)
    for golden in ("scout", "maverick", "top2")
    for layout, reaches in (("", ("local", "1", "2", "every")), ("meta", ("local", "2")))
    for reach in reaches
]


def name_of(case: tuple[str, str, str]) -> str:
    golden, layout, reach = case
    return f"{golden}-{layout or 'hf'}-{reach}"


@pytest.fixture(scope="module", params=CASES, ids=name_of)
def case(request, shared_dir):
    """Return a model's forward pass with its experts where the case says, and the golden outputs."""
    golden, layout, reach = request.param
    folder: Path = shared_dir / "goldens" / golden
    checkpoint = open_checkpoint(folder / layout)
    decoder = load_decoder(checkpoint, dtype=torch.float32)
    with open_transport(checkpoint, reach) as transport:
        yield Forward(decoder, transport), load_file(folder / "golden.safetensors")


@pytest.mark.parametrize("steps", SPLITS.values(), ids=SPLITS)
def test_logits_equal_the_reference(case, steps):
    forward, golden = case
    logits = run_in_splits(forward, golden["input_ids"], steps)
    assert (logits - golden["logits_full"]).abs().max() < TOLERANCE


def test_greedy_tokens_and_their_logprobs_equal_the_reference(case):
    forward, golden = case
    limits = EngineLimits(context_length=64, kv_bytes=10_000_000, step_tokens=16)
    engine = Engine(forward.decoder, forward.transport, limits)
    engine.start()
    events: queue.Queue = queue.Queue()
    request = GenerationRequest(
        request_id="golden",
        prompt_ids=tuple(golden["greedy_prompt"][0].tolist()),
        max_tokens=30,
        sampling=SamplingParams(temperature=0.0),
        logprobs=0,
    )
    engine.submit(request, events.put)
    chosen = []
    while not isinstance(event := events.get(timeout=60), Ended):
        chosen += [event] if isinstance(event, TokenChosen) else []
    engine.stop()
    assert [token.token_id for token in chosen] == golden["greedy_tokens"][0].tolist()
    expected = golden["greedy_step_logits"][0].log_softmax(-1).max(dim=-1).values
    found = torch.tensor([token.logprob.logprob for token in chosen])
    assert (found - expected).abs().max() < TOLERANCE


def test_hidden_states_after_every_layer_equal_the_reference(case):
    forward, golden = case
    found: dict[int, torch.Tensor] = {}
    probed = replace(forward, probe=lambda layer, hidden_TD: found.update({layer: hidden_TD}))
    run_in_splits(probed, golden["input_ids"], [40])
    assert len(found) == forward.decoder.config.num_layers
    for layer, hidden_TD in found.items():
        expected = golden[f"layer{layer}.hidden"]
        assert (hidden_TD.unflatten(0, expected.shape[:2]) - expected).abs().max() < TOLERANCE, f"layer {layer}"
