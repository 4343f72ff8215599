"""A whole MoE block, gate to sum, beside transformers' at the same shape and with the same weights, in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.card import exact_swiglu, relative_error, seconds_of
from benchmarks.gpu.random_weights import random_mlp, random_weight
from models.config import ModelConfig
from models.gpu.moe import DecodeExperts, ResidentExperts, block_of
from models.gpu.residual import Addend
from models.gpu.route import can_route
from models.llama4.mlp import Mlp
from models.llama4.norm import rms_norm
from router.combine import combine
from router.gate import route

_LAYERS = 2
"""That calls take turns with: their weights are far more than a card's cache holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockRow:
    """One number of tokens."""

    tokens: int
    us: float
    transformers_us: float | None
    """None where transformers is not there."""
    error: float
    """Against transformers' in double precision."""

    def described(self) -> str:
        """Return this as a line."""
        beside = "" if self.transformers_us is None else f", transformers {self.transformers_us:.0f} us"
        ratio = "" if self.transformers_us is None else f" ({self.transformers_us / self.us:.2f}x)"
        return f"MoE block, {self.tokens:>4} tokens: {self.us:8.1f} us{beside}{ratio}, error {self.error:.1e}"


@dataclass(frozen=True, slots=True)
class _Layer:
    gate_ED: Tensor
    experts: dict[int, Mlp]
    shared: Mlp
    resident: ResidentExperts


def measure_moe_block(config: ModelConfig, tokens: Sequence[int], device: torch.device) -> Iterator[BlockRow]:
    """Yield a row for every number of tokens."""
    config = replace(config, dtype="bfloat16")
    layers = [_random_layer(config, device) for _ in range(_LAYERS)]
    theirs = [_as_transformers(config, layer, device) for layer in layers]
    for number in tokens:
        x_TD = torch.randn(number, config.hidden_size, device=device, dtype=torch.bfloat16)
        calls = [_call(config, layer, x_TD) for layer in layers]
        transformers_s = None
        with torch.no_grad():
            if None not in theirs:
                transformers_s = seconds_of([partial(block, x_TD[None]) for block in theirs], device)
            expected = _exact(config, layers[0], x_TD)
        yield BlockRow(
            tokens=number,
            us=seconds_of(calls, device) * 1e6,
            transformers_us=None if transformers_s is None else transformers_s * 1e6,
            error=relative_error(calls[0](), expected),
        )


def _random_layer(config: ModelConfig, device: torch.device) -> _Layer:
    width, inner = config.hidden_size, config.expert_width
    experts = {expert: random_mlp("plain", width, inner, device) for expert in range(config.num_experts)}
    shared = random_mlp("plain", width, inner, device)
    gate_ED = random_weight("plain", config.num_experts, width, device).values
    resident = ResidentExperts.of(experts, shared, config.experts_per_token)
    assert resident is not None
    return _Layer(gate_ED, experts, shared, resident)


def _call(config: ModelConfig, layer: _Layer, x_TD: Tensor) -> Any:
    """Return what computes the block's output [T, D] for tokens that are normalised already."""
    num_tokens, num_choices = x_TD.shape[0], config.experts_per_token
    if not can_route(num_tokens, config.num_experts) or num_tokens > 256:

        def many() -> Tensor:
            ids_TK, scores_TK = route(x_TD, layer.gate_ED, num_choices)
            outputs_ND, slots_N = layer.resident.run(x_TD, ids_TK, scores_TK)
            return combine(layer.shared(x_TD), outputs_ND, slots_N, num_choices)

        return many
    step = DecodeExperts(layer.resident, num_tokens)
    zeros_TD, ones_D = torch.zeros_like(x_TD), torch.ones_like(x_TD[0])
    count = torch.full((1,), num_tokens, dtype=torch.int32, device=x_TD.device)

    def few() -> Tensor:
        # The norm is part of the launch: its input is of unit mean square.
        _, added = step(x_TD, Addend(zeros_TD), ones_D, 0.0, layer.gate_ED, count)
        assert added.outputs_ND is not None
        assert added.rows_TK is not None
        rows = added.outputs_ND.index_select(0, added.rows_TK.flatten().long()).view(num_tokens, num_choices, -1)
        return added.base_TD + rows.sum(1)

    x_TD.copy_(rms_norm(x_TD, None, 0.0))
    return few


def _exact(config: ModelConfig, layer: _Layer, x_TD: Tensor) -> Tensor:
    ids_TK, scores_TK = route(x_TD.float(), layer.gate_ED.float(), config.experts_per_token)
    out_TD = _exact_mlp(layer.shared, x_TD.double())
    for expert, mlp in layer.experts.items():
        for choice in range(config.experts_per_token):
            rows = (ids_TK[:, choice] == expert).nonzero()[:, 0]
            if len(rows):
                out_TD[rows] += _exact_mlp(mlp, x_TD[rows].double() * scores_TK[rows, choice, None].double())
    return out_TD


def _exact_mlp(mlp: Mlp, x_TD: Tensor) -> Tensor:
    block = block_of(mlp)
    assert block is not None
    return exact_swiglu(block, x_TD)


def _as_transformers(config: ModelConfig, layer: _Layer, device: torch.device) -> Any:
    """Return transformers' block with the same weights; None where it is not installed."""
    try:
        from transformers.models.llama4.configuration_llama4 import Llama4TextConfig
        from transformers.models.llama4.modeling_llama4 import Llama4TextMoe
    except ImportError:
        return None
    theirs = Llama4TextConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.expert_width,
        num_local_experts=config.num_experts,
        num_experts_per_tok=config.experts_per_token,
    )
    with torch.device(device):
        block = Llama4TextMoe(theirs).to(torch.bfloat16)
    linears = {expert: (_values(mlp.gate_up), _values(mlp.down)) for expert, mlp in layer.experts.items()}
    gate, up = _values(layer.shared.gate_up).chunk(2)
    with torch.no_grad():
        for expert, (gate_up, down) in linears.items():
            block.experts.gate_up_proj[expert] = gate_up.t()
            block.experts.down_proj[expert] = down.t()
        block.router.weight.copy_(layer.gate_ED)
        block.shared_expert.gate_proj.weight.copy_(gate)
        block.shared_expert.up_proj.weight.copy_(up)
        block.shared_expert.down_proj.weight.copy_(_values(layer.shared.down))
    return block.eval()


def _values(linear: Any) -> Tensor:
    values: Tensor = linear.weight.values
    return values
