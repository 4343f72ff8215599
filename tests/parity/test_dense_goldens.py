"""Dense models against transformers' fp32 outputs: the same decoder without gates."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from models.checkpoint import open_checkpoint
from models.llama4.decoder import load_decoder
from router.forward import Forward
from tests.parity.splits import run_in_splits
from tests.parity.transports import open_transport


@pytest.mark.parametrize("steps", [[40], [1] * 40, [9, 31]], ids=["whole", "1x40", "9+31"])
@pytest.mark.parametrize("golden", ["guard", "llama1", "llama2_gqa", "codellama", "llama3", "llama31", "llama32"])
def test_dense_logits_equal_the_reference(shared_dir, golden, steps):
    folder = shared_dir / "goldens" / golden
    checkpoint = open_checkpoint(folder)
    expected = load_file(folder / "golden.safetensors")
    with open_transport(checkpoint, "local") as transport:
        forward = Forward(load_decoder(checkpoint, dtype=torch.float32), transport)
        logits = run_in_splits(forward, expected["input_ids"], steps)
    assert (logits - expected["logits_full"]).abs().max() < 1e-3
