"""Quantised releases give the logits of the weights that their codes stand for."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from models.checkpoint import open_checkpoint
from models.llama4.decoder import load_decoder
from router.forward import Forward
from tests.parity.splits import run_in_splits
from tests.parity.test_goldens import TOLERANCE
from tests.parity.transports import open_transport


@pytest.mark.parametrize("reach", ["local", "2"])
@pytest.mark.parametrize("golden", ["scout_fp8ct", "scout_fbgemm", "scout_w4a16"])
def test_logits_are_those_of_the_weights_that_codes_stand_for(shared_dir, golden, reach):
    folder = shared_dir / "goldens" / golden
    checkpoint = open_checkpoint(folder)
    expected = load_file(folder / "golden.safetensors")
    decoder = load_decoder(checkpoint, dtype=torch.float32)
    with open_transport(checkpoint, reach) as transport:
        logits = run_in_splits(Forward(decoder, transport), expected["input_ids"], [expected["input_ids"].shape[1]])
    assert (logits - expected["logits_weight_dequant"]).abs().max() < TOLERANCE
