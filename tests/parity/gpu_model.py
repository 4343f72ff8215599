"""A model whose attention and experts are a GPU's: on one, or its kernels in Triton's interpreter on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from experts.kernels.triton_gpu import TritonKernel
from experts.reader import ExpertReader
from models.checkpoint import Checkpoint, KeptCodes
from models.llama4.decoder import Decoder, load_decoder
from models.llama4.mlp import Mlp
from router.forward import Forward
from router.transport.local import LocalTransport

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, slots=True)
class GpuModel:
    """A whole model in float32, and what holds its weights."""

    forward: Forward
    decoder: Decoder
    experts: dict[tuple[int, int], Mlp]
    """By layer and expert."""


def load_gpu_model(source: Checkpoint | KeptCodes) -> GpuModel:
    """Read a model as a GPU holds it."""
    decoder = load_decoder(source, dtype=torch.float32, device=DEVICE, for_gpu=True)
    decoder.has_gpu_kernels = True
    kernel = TritonKernel(DEVICE)
    reader = ExpertReader(source, kernel, torch.float32, DEVICE)
    experts = {
        (layer, expert): mlp
        for expert, by_layer in reader.read(range(source.config.num_experts), None, 1)
        for layer, mlp in by_layer.items()
    }

    def run_experts(layer, hidden_ND, expert_ids, token_counts):
        return kernel.run([experts[layer, expert] for expert in expert_ids], token_counts, hidden_ND)

    return GpuModel(Forward(decoder, LocalTransport(run_experts)), decoder, experts)
