"""The weights a router holds: everything of the model but its routed experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import ModelConfig
from models.cpu import attention as cpu_attention
from models.cpu.attention import AttentionKernel, LayerTensors
from models.gpu import attention_pages as gpu_attention
from models.gpu.device import is_supported as is_gpu_supported
from models.linear import (
    Linear,
    Quantization,
    Rounded,
    RowMajorLinear,
    check_rounding,
    join_rounded,
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

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor | Rounded:
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
        self.has_gpu_kernels = is_gpu_supported(embed_VD.device) and gpu_attention.is_supported(config)
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


def _joined(parts: list[Tensor], device: torch.device) -> Tensor:
    """Return matrices of the same inputs as one on a device, where each is no more than once at any time."""
    if len(parts) == 1:
        return parts.pop().to(device)
    joined = parts[0].new_empty((sum(part.shape[0] for part in parts), parts[0].shape[1]), device=device)
    for place in joined.split([part.shape[0] for part in parts]):
        place.copy_(parts.pop(0))
    return joined


def load_decoder(
    source: WeightSource,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    quantize: Quantization | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    for_gpu: bool | None = None,
) -> Decoder:
    """Read the router's share of a model, matrix by matrix: no layer's weights wait for another's.

    Args:
        source: the checkpoint.
        dtype: what to compute in.
        device: where to.
        quantize: how to round all matrices but the embeddings and the gates, and the LM head, which is never rounded
            to less than 8 bits: 4 bits there cost the demo model a fifth of what int4 costs it, and many rows time.
            What the source has in codes stays so. None: not at all.
        progress: called with (layers read, layers in all) after each layer.
        for_gpu: whether codes are laid out for a GPU's kernels; None: as the device has them.

    Raises:
        BadConfig: nothing multiplies weights rounded so on that device; none was read.
        BadCheckpoint: the weights cannot be read.

    Cost: beyond what stays, the weights of one product (gate and up) on the CPU, and on the device once more, with
    what rounding a part of them needs.
    """
    config, device = source.config, torch.device(device)
    if not for_gpu:
        check_rounding(quantize, device)

    def read(name: str) -> Tensor:
        found = source.read(name, dtype)
        assert isinstance(found, Tensor), f"{name} is computed with as it is"
        return found.to(device)

    head_quantize: Quantization | None = "int8" if quantize == "int4" else quantize

    def pack(*names: str, quantize: Quantization | None = quantize) -> Linear:
        parts = [source.read(name, dtype) for name in names]
        if (rounded := join_rounded(parts)) is not None:
            return pack_rounded(rounded, dtype, device=device, for_gpu=for_gpu)
        plain = [part if isinstance(part, Tensor) else part.dequantized().to(dtype) for part in parts]
        del parts
        return pack_linear(_joined(plain, device), quantize, for_gpu=for_gpu)

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
        lm_head = None if quantize is None else pack_linear(embed_VD, head_quantize, for_gpu=for_gpu)
    else:
        lm_head = pack("lm_head", quantize=head_quantize)
    layers = []
    for layer in range(config.num_layers):
        layers.append(read_layer(layer))
        progress(layer + 1, config.num_layers)
    return Decoder(config, embed_VD, tuple(layers), read("norm"), lm_head)
