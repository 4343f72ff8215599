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
from router.transport.local import LocalTransport, RunExperts

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, slots=True)
class GpuModel:
    """A whole model in float32, and what holds its weights."""

    decoder: Decoder
    experts: dict[int, dict[int, Mlp]]
    """By layer and expert."""
    run_experts: RunExperts

    @property
    def transport(self) -> LocalTransport:
        """The way to experts that stay beside the decoder."""
        return LocalTransport(self.run_experts, self.experts.__getitem__)

    @property
    def forward(self) -> Forward:
        """A forward pass whose host sorts tokens by expert."""
        return Forward(self.decoder, self.transport)


def load_gpu_model(source: Checkpoint | KeptCodes) -> GpuModel:
    """Read a model as a GPU holds it."""
    decoder = load_decoder(source, dtype=torch.float32, device=DEVICE, for_gpu=True)
    decoder.has_gpu_kernels = True
    kernel = TritonKernel(DEVICE)
    reader = ExpertReader(source, kernel, torch.float32, DEVICE)
    experts: dict[int, dict[int, Mlp]] = {layer: {} for layer in source.config.moe_layers}
    for expert, by_layer in reader.read(range(source.config.num_experts), None, 1):
        for layer, mlp in by_layer.items():
            experts[layer][expert] = mlp

    def run_experts(layer, hidden_ND, expert_ids, token_counts):
        return kernel.run([experts[layer][expert] for expert in expert_ids], token_counts, hidden_ND)

    return GpuModel(decoder, experts, run_experts)
