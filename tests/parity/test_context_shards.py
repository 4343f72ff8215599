"""Logits with global layers' keys and values on context shard processes, against transformers' and against none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from models.checkpoint import open_checkpoint
from models.llama4.decoder import load_decoder
from router.context_shards.shards import ContextShards
from router.forward import Forward
from tests.parity.splits import run_in_splits
from tests.parity.transports import START_S, context_processes, open_transport

TOLERANCE = 1e-4
SPLITS = {"whole": [40], "1x40": [1] * 40, "20+1x20": [20] + [1] * 20, "9+31": [9, 31], "7+1+32": [7, 1, 32]}


@pytest.fixture(scope="module", params=[1, 2, 4])
def case(request, shared_dir):
    """Return a forward pass without shards, the same with so many, and the golden outputs."""
    folder = shared_dir / "goldens" / "scout"
    checkpoint = open_checkpoint(folder)
    decoder = load_decoder(checkpoint, dtype=torch.float32)
    with (
        open_transport(checkpoint, "local") as transport,
        context_processes(checkpoint, request.param, 10**6) as holders,
    ):
        shards = ContextShards(router_id="parity", fingerprint=checkpoint.fingerprint, segment_tokens=8)
        shards.update(holders)
        assert shards.wait_ready(request.param, START_S)
        forward = Forward(decoder, transport)
        yield forward, replace(forward, shards=shards), load_file(folder / "golden.safetensors")
        shards.close()


@pytest.mark.parametrize("steps", SPLITS.values(), ids=SPLITS)
def test_logits_are_those_without_shards_and_the_reference(case, steps):
    alone, on_shards, golden = case
    logits = run_in_splits(on_shards, golden["input_ids"], steps)
    assert (logits - golden["logits_full"]).abs().max() < TOLERANCE
    assert (logits - run_in_splits(alone, golden["input_ids"], steps)).abs().max() < TOLERANCE


def test_steps_of_several_batches_see_each_others_tokens(case):
    _, on_shards, golden = case
    logits = run_in_splits(on_shards, golden["input_ids"], [40], num_batches=3)
    assert (logits - golden["logits_full"]).abs().max() < TOLERANCE
