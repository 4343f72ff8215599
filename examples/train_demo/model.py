"""The network for training: Llama 4's forward pass in plain torch, with autograd and a sparse dispatch to the experts.

Parameters carry Hugging Face's names, so a state dict is a checkpoint. Serving does not use this file.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 64
"""An expert's tokens are padded to a multiple of this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoShape:
    """Sizes of the demo model; letters as in docs/shapes.md."""

    vocab_size: int = 4096
    hidden_size: int = 256
    num_layers: int = 8
    num_heads: int = 4
    num_kv_heads: int = 2
    head_size: int = 64
    num_experts: int = 8
    expert_width: int = 144
    chunk: int = 128
    """Tokens per chunk of local attention."""
    nope_interval: int = 4
    """Every nope_interval-th layer is global and has no rotary embedding."""
    rope_theta: float = 10_000.0
    floor_scale: int = 128
    attn_scale: float = 0.1
    norm_eps: float = 1e-5
    max_positions: int = 4096

    def is_global(self, layer: int) -> bool:
        """Tell whether a layer attends to everything before it, without rotary embedding."""
        return (layer + 1) % self.nope_interval == 0


class RMSNorm(nn.Module):
    """Root-mean-square norm in fp32, then a weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention: local with rotary embedding and q/k norm, or global with a temperature."""

    def __init__(self, shape: DemoShape, layer: int) -> None:
        super().__init__()
        self.shape, self.is_global = shape, shape.is_global(layer)
        query, kv = shape.num_heads * shape.head_size, shape.num_kv_heads * shape.head_size
        self.q_proj = nn.Linear(shape.hidden_size, query, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv, bias=False)
        self.o_proj = nn.Linear(query, shape.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, turns_TC: Tensor, scale_T: Tensor) -> Tensor:
        """Attend; `turns_TC` [T, C/2] complex64 rotates by position, `scale_T` [T] fp32 sharpens global queries."""
        B, T, _ = x_BTD.shape
        q = self.q_proj(x_BTD).view(B, T, -1, self.shape.head_size)
        k = self.k_proj(x_BTD).view(B, T, -1, self.shape.head_size)
        v = self.v_proj(x_BTD).view(B, T, -1, self.shape.head_size)
        if self.is_global:
            q = (q * scale_T[None, :, None, None]).to(v.dtype)
        else:
            q, k = (self._normalise(self._rotate(part, turns_TC)).to(v.dtype) for part in (q, k))
        repeat = self.shape.num_heads // self.shape.num_kv_heads
        k, v = k.repeat_interleave(repeat, dim=2), v.repeat_interleave(repeat, dim=2)
        out: Tensor = self.o_proj(self._attend(q, k, v).reshape(B, T, -1))
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        B, T, H, C = q.shape
        chunk = T if self.is_global else min(self.shape.chunk, T)
        padding = -T % chunk
        # Chunks do not see each other, so they are rows of a batch; padding comes last and is not seen.
        q, k, v = (F.pad(part, (0, 0, 0, 0, 0, padding)).reshape(-1, chunk, H, C).transpose(1, 2) for part in (q, k, v))
        # Written out: at these sizes two matrix products are three times as fast as torch's fused kernel on a CPU.
        unseen = torch.full((chunk, chunk), float("-inf"), dtype=q.dtype).triu(1)
        weights = (q * C**-0.5 @ k.transpose(-1, -2) + unseen).softmax(dim=-1)
        out: Tensor = (weights @ v).transpose(1, 2).reshape(B, T + padding, H, C)
        return out[:, :T]

    @staticmethod
    def _rotate(x_BTHC: Tensor, turns_TC: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x_BTHC.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turns_TC[None, :, None, :]).flatten(-2)

    def _normalise(self, x_BTHC: Tensor) -> Tensor:
        return F.rms_norm(x_BTHC, (x_BTHC.shape[-1],), None, self.shape.norm_eps)


class SwiGLU(nn.Module):
    """The shared expert: every token visits it, unscaled."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Run the expert on `x` [..., D]."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Experts(nn.Module):
    """The routed experts' fused weights, oriented [in, out] as Hugging Face stores them."""

    def __init__(self, shape: DemoShape) -> None:
        super().__init__()
        E, D, width = shape.num_experts, shape.hidden_size, shape.expert_width
        self.gate_up_proj = nn.Parameter(torch.empty(E, D, 2 * width))
        self.down_proj = nn.Parameter(torch.empty(E, width, D))

    def forward(self, x_ND: Tensor, counts_E: list[int]) -> Tensor:
        """Run tokens that are sorted by expert, `counts_E[e]` of them on expert e."""
        outs = []
        for e, part in enumerate(x_ND.split(counts_E)):
            # Few distinct sizes: the CPU's matrix kernels are compiled anew for every size they have not seen.
            padded = F.pad(part, (0, 0, 0, -len(part) % ROWS))
            gate, up = (padded @ self.gate_up_proj[e]).chunk(2, dim=-1)
            outs.append(((F.silu(gate) * up) @ self.down_proj[e])[: len(part)])
        return torch.cat(outs)


class MoE(nn.Module):
    """One routed expert per token, scaled on its input by the gate's sigmoid, plus the shared expert."""

    def __init__(self, shape: DemoShape) -> None:
        super().__init__()
        self.num_experts = shape.num_experts
        self.experts = Experts(shape)
        self.router = nn.Linear(shape.hidden_size, shape.num_experts, bias=False)
        self.shared_expert = SwiGLU(shape.hidden_size, shape.expert_width)
        self.counts_E = torch.zeros(shape.num_experts)
        """[E] fp32, tokens each expert got in the last forward pass."""
        self.balance_loss = torch.zeros(())
        """Switch Transformer's auxiliary loss of the last forward pass: 1 when the load is even."""

    def forward(self, x_TD: Tensor) -> Tensor:
        """Route and run every token."""
        logits_TE = self.router(x_TD).float()
        best_T, expert_T = logits_TE.max(dim=-1)
        counts_E = torch.bincount(expert_T, minlength=self.num_experts)
        self.counts_E = counts_E.detach().float()
        share_E = self.counts_E / len(x_TD)
        self.balance_loss = self.num_experts * (share_E * logits_TE.softmax(dim=-1).mean(dim=0)).sum()

        order_N = expert_T.argsort(stable=True)
        scaled_TD = x_TD * best_T.sigmoid()[:, None].to(x_TD.dtype)
        routed_ND = self.experts(scaled_TD[order_N], counts_E.tolist())
        back_T = torch.empty_like(order_N).scatter_(0, order_N, torch.arange(len(order_N)))
        out: Tensor = routed_ND[back_T] + self.shared_expert(x_TD)
        return out


class Layer(nn.Module):
    """Attention and experts, each behind a norm and added to the residual stream."""

    def __init__(self, shape: DemoShape, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(shape, layer)
        self.feed_forward = MoE(shape)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.norm_eps)

    def forward(self, x_BTD: Tensor, turns_TC: Tensor, scale_T: Tensor) -> Tensor:
        """Add this layer's work to the residual stream."""
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), turns_TC, scale_T)
        hidden_BTD: Tensor = self.post_attention_layernorm(x_BTD)
        out: Tensor = x_BTD + self.feed_forward(hidden_BTD.flatten(0, 1)).view_as(x_BTD)
        return out


class Trunk(nn.Module):
    """Embedding, layers and final norm, under the name that Hugging Face gives them."""

    def __init__(self, shape: DemoShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape, i) for i in range(shape.num_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.norm_eps)


class DemoModel(nn.Module):
    """Llama 4 text model of the demo's size. Source: the forward pass of transformers' Llama4ForCausalLM."""

    def __init__(self, shape: DemoShape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.model = Trunk(shape)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                is_output = name.endswith(("o_proj.weight", "down_proj.weight", "down_proj"))
                width = 0.02 if "embed" in name or "lm_head" in name else shape.hidden_size**-0.5
                std = width / (2 * shape.num_layers) ** 0.5 if is_output else width
                nn.init.normal_(weight, std=std, generator=generator)

    def forward(self, ids_BT: Tensor, wanted_BT: Tensor | None = None) -> Tensor:
        """Compute next-token logits.

        Args:
            ids_BT: [B, T] int64, each row from position 0.
            wanted_BT: [B, T] bool, positions whose logits are wanted; None: all.

        Returns:
            [B, T, V], or [N, V] for the N wanted positions in row order.
        """
        shape, T = self.shape, ids_BT.shape[1]
        positions_T = torch.arange(T, dtype=torch.float32)
        frequencies = shape.rope_theta ** -(torch.arange(0, shape.head_size, 2) / shape.head_size)
        turns_TC = torch.polar(torch.ones(T, len(frequencies)), torch.outer(positions_T, frequencies))
        scale_T = 1 + shape.attn_scale * torch.log1p(torch.floor((positions_T + 1) / shape.floor_scale))
        x_BTD = self.model.embed_tokens(ids_BT)
        for layer in self.model.layers:
            x_BTD = layer(x_BTD, turns_TC, scale_T)
        if wanted_BT is not None:
            x_BTD = x_BTD[wanted_BT]
        logits: Tensor = self.lm_head(self.model.norm(x_BTD))
        return logits

    def moes(self) -> list[MoE]:
        """List the MoE blocks, first layer first."""
        return [layer.feed_forward for layer in self.model.layers]  # type: ignore[misc]
