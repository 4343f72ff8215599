"""Weights of normal size and no meaning, made on the card in the form they are wanted in: nothing is rounded."""

from __future__ import annotations

import torch

from models.config import ModelConfig
from models.gpu.linear import GpuLinear
from models.gpu.weight import GROUP, Form, GpuWeight, plain
from models.linear.plain import PlainLinear
from models.llama4.attention import AttentionWeights
from models.llama4.decoder import Decoder, DecoderLayer
from models.llama4.mlp import Mlp

_INT4_STD, _INT8_STD = 4.6, 73.0
"""Of codes drawn evenly."""


def random_weight(form: Form, num_outputs: int, num_inputs: int, device: torch.device) -> GpuWeight:
    """Return a weight [O, I] whose products with numbers of size 1 are of size 1."""
    size = num_inputs**-0.5
    if form == "int4":
        groups = -(-num_inputs // GROUP)
        codes = torch.randint(0, 256, (num_outputs, groups * GROUP // 2), dtype=torch.uint8, device=device)
        scale = torch.full((groups, num_outputs), size / _INT4_STD, dtype=torch.bfloat16, device=device)
        return GpuWeight("int4", codes, scale, num_inputs)
    if form == "int8":
        codes = torch.randint(-127, 128, (num_outputs, num_inputs), dtype=torch.int8, device=device)
        return GpuWeight("int8", codes, torch.full((num_outputs,), size / _INT8_STD, device=device), num_inputs)
    values = torch.empty(num_outputs, num_inputs, dtype=torch.bfloat16, device=device).normal_(std=size)
    if form == "plain":
        return plain(values)
    scale_O = torch.full((num_outputs,), 2.0**-8, device=device)
    return GpuWeight("fp8", (values * 2.0**8).to(torch.float8_e4m3fn), scale_O, num_inputs)


def random_mlp(form: Form, width: int, inner: int, device: torch.device) -> Mlp:
    """Return a SwiGLU block [D -> F -> D]."""
    gate_up, down = random_weight(form, 2 * inner, width, device), random_weight(form, width, inner, device)
    return Mlp(GpuLinear(gate_up), GpuLinear(down))


def random_decoder(config: ModelConfig, form: Form, device: torch.device) -> Decoder:
    """Return a router's share of a model whose matrices are in a form; an LM head in four bits is kept in eight."""
    width, dtype = config.hidden_size, torch.bfloat16

    def norm() -> torch.Tensor:
        return torch.ones(width, dtype=dtype, device=device)

    def layer(index: int) -> DecoderLayer:
        is_moe = index in config.moe_layers
        heads, size = config.num_heads * config.head_size, config.head_size
        qkv = random_weight(form, heads + 2 * config.num_kv_heads * size, width, device)
        gate = plain(random_weight("plain", config.num_experts, width, device).values) if is_moe else None
        return DecoderLayer(
            attn_norm=norm(),
            ffn_norm=norm(),
            attention=AttentionWeights(GpuLinear(qkv), GpuLinear(random_weight(form, width, heads, device))),
            gate_ED=None if gate is None else gate.values,
            shared=random_mlp(form, width, config.expert_width, device) if is_moe else None,
            dense=None if is_moe else random_mlp(form, width, config.dense_width, device),
        )

    embed_VD = torch.empty(config.vocab_size, width, dtype=dtype, device=device).normal_()
    head = random_weight("int8" if form == "int4" else form, config.vocab_size, width, device)
    layers = tuple(layer(index) for index in range(config.num_layers))
    lm_head = PlainLinear(head.values) if form == "plain" else GpuLinear(head)
    decoder = Decoder(config, embed_VD, layers, norm(), lm_head)
    decoder.has_gpu_kernels = True  # in Triton's interpreter, where there is no card
    return decoder


def random_experts(config: ModelConfig, form: Form, device: torch.device) -> dict[int, dict[int, Mlp]]:
    """Return all routed experts by layer."""
    return {
        layer: {
            expert: random_mlp(form, config.hidden_size, config.expert_width, device)
            for expert in range(config.num_experts)
        }
        for layer in config.moe_layers
    }
