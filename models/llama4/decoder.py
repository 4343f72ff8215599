"""The weights a router holds: everything of the model but its routed experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.arena import Arena
from models.config import ModelConfig
from models.cpu import attention as cpu_attention
from models.cpu.attention import AttentionKernel, LayerTensors
from models.gpu import attention_pages as gpu_attention
from models.linear import (
    Int4Weight,
    Linear,
    Quantization,
    RowMajorLinear,
    join_int4,
    pack_linear,
    pack_rounded,
    share_linear,
)
from models.llama4.attention import Attention, AttentionWeights
from models.llama4.mlp import Mlp
from models.llama4.norm import rms_norm


class WeightSource(Protocol):
    """Where weights come from: `models.checkpoint.Checkpoint`, `KeptCodes`, or a dictionary in tests."""

    @property
    def config(self) -> ModelConfig:
        """The model they belong to."""

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor | Int4Weight:
        """Return one tensor by Herd's name for it, converted to `dtype` if given; a matrix may be rounded already."""


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One layer. `gate_ED` and `shared` are set in MoE layers, `dense` in the others."""

    attn_norm: Tensor
    ffn_norm: Tensor
    attention: AttentionWeights
    gate_ED: Tensor | None
    shared: Mlp | None
    dense: Mlp | None

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights in memory."""
        plain = (self.attn_norm, self.ffn_norm, self.gate_ED)
        packed = (self.attention, self.shared, self.dense)
        return sum(each.nbytes for each in plain if each is not None) + sum(each.num_bytes for each in packed if each)


class Decoder:
    """Embeddings, layers and LM head of one model, on one device in one dtype.

    Args:
        config: the model's.
        embed_VD: [V, D].
        layers: all of them.
        norm_D: [D], of the final norm.
        lm_head: [V, D]; None: the embedding matrix serves as one.
    """

    def __init__(
        self,
        config: ModelConfig,
        embed_VD: Tensor,
        layers: tuple[DecoderLayer, ...],
        norm_D: Tensor,
        lm_head: Linear | None,
    ) -> None:
        self.config = config
        self.layers = layers
        self.attention = Attention(config, embed_VD.device)
        self.kernel = _attention_kernel(config, layers)
        """Whole attention layers in one call, where there is such a kernel."""
        self.has_gpu_kernels = embed_VD.is_cuda and gpu_attention.is_supported(config)
        """Whether attention over the paged cache is a GPU's kernels' (`models.gpu.attention`)."""
        self._embed_VD = embed_VD
        self.norm_D = norm_D
        """[D], of the norm before the LM head."""
        self._lm_head = lm_head or share_linear(embed_VD)
        self._head_bytes = lm_head.num_bytes if lm_head else 0

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._embed_VD.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights and the residual stream are."""
        return self._embed_VD.dtype

    def embed(self, ids_T: Tensor) -> Tensor:
        """Return the residual stream [T, D] at the input, for token ids [T] int64."""
        return F.embedding(ids_T, self._embed_VD)

    def normed(self, hidden_TD: Tensor, weight_D: Tensor) -> Tensor:
        """Return the RMS-normalised residual stream with this model's epsilon."""
        return rms_norm(hidden_TD, weight_D, self.config.norm_eps)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Return next-token logits [T, V] float32 from the residual stream after the last layer."""
        return self.head(self.normed(hidden_TD, self.norm_D))

    def head(self, normed_TD: Tensor) -> Tensor:
        """Return next-token logits [T, V] float32 from what `norm_D` has normalised."""
        return self._lm_head(normed_TD).float()

    def weight_bytes(self) -> int:
        """Return the bytes of distinct weights in memory, as they are held."""
        ends_bytes = self._embed_VD.nbytes + self.norm_D.nbytes + self._head_bytes
        return ends_bytes + sum(layer.num_bytes for layer in self.layers)


def _attention_kernel(config: ModelConfig, layers: tuple[DecoderLayer, ...]) -> AttentionKernel | None:
    if not cpu_attention.is_supported(config):
        return None
    tensors = []
    for layer in layers:
        qkv, o = layer.attention.qkv, layer.attention.o
        if not (isinstance(qkv, RowMajorLinear) and isinstance(o, RowMajorLinear)):
            return None
        tensors.append(LayerTensors(layer.attn_norm, qkv.weight, o.weight, layer.ffn_norm, layer.gate_ED))
    return AttentionKernel(config, tensors)


def load_decoder(
    source: WeightSource,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    quantize: Quantization | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Decoder:
    """Read the router's share of a model.

    Args:
        source: the checkpoint.
        dtype: what to compute in.
        device: where to.
        quantize: how to round all matrices but the embeddings and the gates, and the LM head, which is never rounded
            below int8: 4 bits there cost the demo model a fifth of what int4 costs it, and many rows time. None: not
            at all.
        progress: called with (layers read, layers in all) after each layer.
    """
    config = source.config

    def read(name: str) -> Tensor:
        found = source.read(name, dtype)
        assert isinstance(found, Tensor), f"{name} is computed with as it is"
        return found.to(device)

    head_quantize: Quantization | None = None if quantize is None else "int8"

    def pack(*names: str) -> Linear:
        parts = [source.read(name, dtype) for name in names]
        rounded = [part for part in parts if isinstance(part, Int4Weight)]
        if len(rounded) == len(parts) and torch.device(device).type == "cpu":
            return pack_rounded(join_int4(rounded), dtype, Arena())
        plain = [(part.dequantized().to(dtype) if isinstance(part, Int4Weight) else part).to(device) for part in parts]
        return pack_linear(torch.cat(plain) if len(plain) > 1 else plain[0], quantize)

    def read_mlp(prefix: str) -> Mlp:
        return Mlp(pack(f"{prefix}.gate", f"{prefix}.up"), pack(f"{prefix}.down"))

    def read_layer(layer: int) -> DecoderLayer:
        name = f"layers.{layer}"
        is_moe = layer in config.moe_layers
        qkv = pack(*(f"{name}.attn.{part}" for part in "qkv"))
        return DecoderLayer(
            attn_norm=read(f"{name}.attn_norm"),
            ffn_norm=read(f"{name}.ffn_norm"),
            attention=AttentionWeights(qkv, pack(f"{name}.attn.o")),
            gate_ED=read(f"{name}.gate") if is_moe else None,
            shared=read_mlp(f"{name}.shared") if is_moe else None,
            dense=None if is_moe else read_mlp(f"{name}.dense"),
        )

    embed_VD = read("embed")
    if config.tie_embeddings:
        lm_head = None if quantize is None else pack_linear(embed_VD, head_quantize)
    else:
        lm_head = pack_linear(read("lm_head"), head_quantize)
    layers = []
    for layer in range(config.num_layers):
        layers.append(read_layer(layer))
        progress(layer + 1, config.num_layers)
    return Decoder(config, embed_VD, tuple(layers), read("norm"), lm_head)
