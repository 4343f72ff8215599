"""The path of a GPU against transformers' fp32 outputs: on a GPU, or its kernels in Triton's interpreter on the CPU."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

pytest.importorskip("triton")

from models.checkpoint import open_checkpoint
from tests.parity.gpu_model import load_gpu_model
from tests.parity.splits import run_in_splits

TOLERANCE = 1e-3
STEPS = [9, 4, 1]
"""Over the end of a chunk of 8, in a prompt, in its continuation, and by a lone token."""


@pytest.fixture(params=["scout", "top2"])
def case(request, shared_dir):
    """Return a model whose attention and experts are the GPU's, and the golden outputs."""
    folder = shared_dir / "goldens" / request.param
    return load_gpu_model(open_checkpoint(folder)).forward, load_file(folder / "golden.safetensors")


def test_logits_are_those_of_transformers_over_prompts_and_lone_tokens(case):
    forward, golden = case
    num_tokens = sum(STEPS)
    logits = run_in_splits(forward, golden["input_ids"][:1, :num_tokens], STEPS)
    expected = golden["logits_full"][:1, :num_tokens]
    assert (logits.cpu() - expected).abs().max() < TOLERANCE
