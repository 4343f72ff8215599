"""Tiny random models for tests: a configuration and weights by Herd's names."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import ModelConfig
from models.llama4.decoder import Decoder, load_decoder

TINY = ModelConfig(
    family="llama4",
    num_layers=4,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    vocab_size=96,
    expert_width=24,
    dense_width=40,
    num_experts=4,
    experts_per_token=1,
    moe_layers=(0, 1, 2, 3),
    nope_layers=(3,),
    attention_chunk=8,
    rope_theta=10_000.0,
    rope_scaling=None,
    rope_interleaved=True,
    qk_norm=True,
    attn_temperature=True,
    temperature_floor=4.0,
    temperature_scale=0.1,
    norm_eps=1e-5,
    max_positions=256,
    tie_embeddings=False,
    bos_id=1,
    eos_ids=(2,),
    pad_id=None,
    dtype="float32",
)


class TinyWeights:
    """A WeightSource that makes each tensor from its name: the same in every process."""

    def __init__(self, config: ModelConfig = TINY) -> None:
        self.config = config
        self._made: dict[tuple[str, torch.dtype | None], Tensor] = {}

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        if (name, dtype) not in self._made:
            self._made[name, dtype] = self._make(name, dtype)
        return self._made[name, dtype]

    def _make(self, name: str, dtype: torch.dtype | None) -> Tensor:
        generator = torch.Generator().manual_seed(sum(ord(c) * 31**i for i, c in enumerate(name)) % 2**31)
        shape = tensor_shape(name, self.config)
        if len(shape) == 1:
            return (1 + 0.1 * torch.randn(shape, generator=generator)).to(dtype or torch.float32)
        return (torch.randn(shape, generator=generator) * 1.5 / shape[-1] ** 0.5).to(dtype or torch.float32)

    def run_experts(self, layer: int, hidden_ND: Tensor, expert_ids: list[int], counts: list[int]) -> Tensor:
        """Run experts the obvious way in their tokens' dtype, for LocalTransport."""
        rows, dtype = [], hidden_ND.dtype
        for expert, part_ND in zip(expert_ids, hidden_ND.split(list(counts)), strict=True):
            gate, up = (part_ND @ self.read(f"layers.{layer}.experts.{expert}.gate_up", dtype)).chunk(2, dim=-1)
            rows.append((F.silu(gate) * up) @ self.read(f"layers.{layer}.experts.{expert}.down", dtype))
        return torch.cat(rows)


def tensor_shape(name: str, config: ModelConfig) -> tuple[int, ...]:
    """Return the shape of one of our tensors."""
    d, heads, groups, c = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_size
    part = name.split(".", 2)[-1]
    kind, _, leaf = part.rpartition(".")
    width = config.expert_width if kind == "shared" else config.dense_width
    shapes = {
        "embed": (config.vocab_size, d),
        "lm_head": (config.vocab_size, d),
        "attn.q": (heads * c, d),
        "attn.k": (groups * c, d),
        "attn.v": (groups * c, d),
        "attn.o": (d, heads * c),
        "gate": (config.num_experts, d),
    }
    if kind.startswith("experts."):
        return (d, 2 * config.expert_width) if leaf == "gate_up" else (config.expert_width, d)
    if kind in ("shared", "dense"):
        return (d, width) if leaf == "down" else (width, d)
    return shapes.get(part, (d,))


def tiny_decoder(dtype: torch.dtype = torch.float32, **changes: object) -> tuple[Decoder, TinyWeights]:
    """Return a decoder over a variation of TINY, and the weights it was read from."""
    weights = TinyWeights(replace(TINY, **changes))  # type: ignore[arg-type]
    return load_decoder(weights, dtype=dtype), weights
