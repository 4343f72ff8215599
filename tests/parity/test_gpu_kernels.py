"""The path of a GPU against transformers' fp32 outputs: on a GPU, or its kernels in Triton's interpreter on the CPU."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("triton")

from experts.kernels.triton_gpu import TritonKernel
from models.checkpoint import open_checkpoint
from models.checkpoint.tensor_shapes import expert_names
from models.llama4.decoder import load_decoder
from router.forward import Forward
from router.transport.local import LocalTransport
from tests.parity.splits import run_in_splits

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = 1e-3
STEPS = [9, 4, 1]
"""Over the end of a chunk of 8, in a prompt, in its continuation, and by a lone token."""


@pytest.fixture(params=["scout", "top2"])
def case(request, shared_dir):
    """Return a model whose attention and experts are the GPU's, and the golden outputs."""
    folder = shared_dir / "goldens" / request.param
    checkpoint = open_checkpoint(folder)
    decoder = load_decoder(checkpoint, dtype=torch.float32, device=DEVICE)
    decoder.has_gpu_kernels = True
    kernel = TritonKernel(DEVICE)
    experts = {
        (layer, expert): kernel.pack(*(checkpoint.read(name, torch.float32) for name in expert_names(layer, expert)))
        for layer in checkpoint.config.moe_layers
        for expert in range(checkpoint.config.num_experts)
    }

    def run_experts(layer, hidden_ND, expert_ids, token_counts):
        return kernel.run([experts[layer, expert] for expert in expert_ids], token_counts, hidden_ND)

    return Forward(decoder, LocalTransport(run_experts)), load_file(folder / "golden.safetensors")


def test_logits_are_those_of_transformers_over_prompts_and_lone_tokens(case):
    forward, golden = case
    num_tokens = sum(STEPS)
    logits = run_in_splits(forward, golden["input_ids"][:1, :num_tokens], STEPS)
    expected = golden["logits_full"][:1, :num_tokens]
    assert (logits.cpu() - expected).abs().max() < TOLERANCE
