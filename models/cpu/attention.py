"""Whole attention layers over the paged cache, one call each."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import addressof, c_float, c_long, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import ModelConfig
from models.cpu.library import loaded_library
from models.cpu.tensors import Input, InputStruct
from models.cpu.threads import num_kernel_threads
from models.cpu.weight import Weight

_HEAD = 64
"""What head sizes are multiples of."""
_MOST_HEAD = 256
_MOST_HEADS_OF_GROUP = 48
_EXPERTS_MULTIPLE = 4
_MOST_EXPERTS = 1024


class _Layer(ctypes.Structure):
    _fields_ = (
        ("num_heads", c_long),
        ("num_groups", c_long),
        ("head_size", c_long),
        ("width", c_long),
        ("rotates", c_long),
        ("interleaved", c_long),
        ("norms_qk", c_long),
        ("eps", c_float),
        ("attn_norm", c_void_p),
        ("qkv", c_void_p),
        ("o", c_void_p),
        ("ffn_norm", c_void_p),
        ("gate", c_void_p),
        ("num_experts", c_long),
        ("num_chosen", c_long),
    )


class _Seen(ctypes.Structure):
    _fields_ = (
        ("num_tokens", c_long),
        ("num_readers", c_long),
        ("slots", c_void_p),
        ("readers", c_void_p),
        ("runs", c_void_p),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("layer", c_void_p),
        ("seen", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("turns", c_void_p),
        ("temperature", c_void_p),
        ("hidden", c_void_p),
        ("normed", InputStruct),
        ("qkv", c_void_p),
        ("mixed", InputStruct),
        ("chosen", c_void_p),
        ("scores", c_void_p),
    )


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """One layer; norms bfloat16, contiguous."""

    attn_norm_D: Tensor
    qkv: Weight
    """[(H + 2G)·C, D]."""
    o: Weight
    """[D, H·C], of the same kind."""
    ffn_norm_D: Tensor
    gate_ED: Tensor | None


@dataclass(frozen=True, slots=True)
class Reading:
    """Who reads what of the cache in the layers of one kind, all int64."""

    slots_T: Tensor
    """[T]: where each token's own keys and values go."""
    readers_R5: Tensor
    """[R, 5]: consecutive tokens of one sequence: (first row, tokens, keys that the first sees, itself included, first
    run, runs)."""
    runs_N2: Tensor
    """[N, 2]: (first slot, slots), the positions of a sequence in order."""


Cache = Sequence[tuple[Tensor, Tensor]]
"""Keys and values [slots, G, C] of each layer, bfloat16."""


class AttentionKernel:
    """A model's attention layers, ready to be called.

    Args:
        config: the model's; `is_supported`.
        layers: all of them.
    """

    def __init__(self, config: ModelConfig, layers: Sequence[LayerTensors]) -> None:
        self.config = config
        self.layers = [_describe_layer(config, number, layer) for number, layer in enumerate(layers)]
        self.qkv, self.o = layers[0].qkv, layers[0].o
        """Of some layer: they are alike in all."""
        self._tensors = tuple(layers)  # kept: the structures name their memory


class AttentionStep:
    """A step's way through the layers, one after the other, in one thread.

    Args:
        kernel: the model's.
        hidden_TD: [T, D], the residual stream; each layer's attention is added to it in place.
        turns: `RotaryEmbedding.turns` of the tokens.
        temperature_T: [T, 1, 1] float32, None where the model has none.
        readings: by whether a layer is local.
        cache: of all layers.
    """

    def __init__(
        self,
        kernel: AttentionKernel,
        hidden_TD: Tensor,
        turns: Tensor,
        temperature_T: Tensor | None,
        readings: Mapping[bool, Reading],
        cache: Cache,
    ) -> None:
        config, num_tokens = kernel.config, hidden_TD.shape[0]
        heads, groups, size = config.num_heads, config.num_kv_heads, config.head_size
        self._kernel = kernel
        self._cache = cache
        self._seen = {is_local: _describe_reading(reading) for is_local, reading in readings.items()}
        self._normed_TD = torch.empty_like(hidden_TD)
        qkv = hidden_TD.new_empty(num_tokens, (heads + 2 * groups) * size)
        normed = Input(self._normed_TD, kernel.qkv)
        mixed = Input(hidden_TD.new_empty(num_tokens, heads * size), kernel.o)
        self.expert_ids_TK = torch.empty(num_tokens, config.experts_per_token, dtype=torch.int64)
        """The experts that each token visits, chosen by `attend` in a MoE layer. Source: router.gate."""
        self.scores_TK = hidden_TD.new_empty(num_tokens, config.experts_per_token)
        """How strongly."""
        self._kept = (hidden_TD, turns, temperature_T, readings, normed, qkv, mixed)  # the structure names their memory
        temperature = None if temperature_T is None else temperature_T.data_ptr()
        by_layer = (None, None, None, None)
        choice = self.expert_ids_TK.data_ptr(), self.scores_TK.data_ptr()
        others = (hidden_TD.data_ptr(), normed.struct, qkv.data_ptr(), mixed.struct, *choice)
        self._step = _Step(*by_layer, turns.data_ptr(), temperature, *others)
        self._call = loaded_library().herd_attention

    def attend(self, layer: int) -> Tensor:
        """Add a layer's attention to the residual stream; return that [T, D], normalised for the feed-forward block.

        The result is overwritten by the next call.
        """
        step, kernel = self._step, self._kernel
        keys, values = self._cache[layer]
        step.layer = addressof(kernel.layers[layer])
        step.seen = addressof(self._seen[kernel.config.is_local(layer)])
        step.keys, step.values = keys.data_ptr(), values.data_ptr()
        self._call(addressof(step), num_kernel_threads())
        return self._normed_TD


def is_supported(config: ModelConfig) -> bool:
    """Tell whether the kernels know heads and experts of such sizes and numbers."""
    per_group = config.num_heads // config.num_kv_heads
    if config.num_experts % _EXPERTS_MULTIPLE or config.num_experts > _MOST_EXPERTS:
        return False
    return config.head_size % _HEAD == 0 and config.head_size <= _MOST_HEAD and per_group <= _MOST_HEADS_OF_GROUP


def _describe_reading(reading: Reading) -> _Seen:
    counts = reading.slots_T.shape[0], reading.readers_R5.shape[0]
    return _Seen(*counts, reading.slots_T.data_ptr(), reading.readers_R5.data_ptr(), reading.runs_N2.data_ptr())


def _describe_layer(config: ModelConfig, number: int, tensors: LayerTensors) -> _Layer:
    shape = (config.num_heads, config.num_kv_heads, config.head_size, config.hidden_size)
    flags = (number not in config.nope_layers, config.rope_interleaved, config.qk_norm)
    norms = tensors.attn_norm_D.data_ptr(), tensors.ffn_norm_D.data_ptr()
    weights = tensors.qkv.address, tensors.o.address
    gate = None if tensors.gate_ED is None else tensors.gate_ED.data_ptr()
    experts = config.num_experts, config.experts_per_token
    return _Layer(*shape, *flags, config.norm_eps, norms[0], *weights, norms[1], gate, *experts)
