"""What a model is: the one configuration every part of Herd reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from protos.errors import BadConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """Llama 3 frequency scaling: long wavelengths are stretched by `factor`.

    Source: Llama 3.1's `apply_scaling`, as in transformers' `rope_type: llama3`.
    """

    factor: float
    """Stretch of the lowest frequencies; at least 1."""
    low_freq_factor: float
    """Wavelengths above original_max_positions / this are stretched fully."""
    high_freq_factor: float
    """Wavelengths below original_max_positions / this are left alone."""
    original_max_positions: int
    """Context the model was pre-trained with, in tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Architecture of a Llama model. Letters in brackets are the project's shape letters."""

    family: Literal["llama4", "llama"]
    """Which special tokens and chat format go with it."""
    num_layers: int
    """Decoder layers [L]."""
    hidden_size: int
    """Width of the residual stream [D]."""
    num_heads: int
    """Query heads [H]; a multiple of num_kv_heads."""
    num_kv_heads: int
    """Key/value heads [G]."""
    head_size: int
    """Width of one head [C]."""
    vocab_size: int
    """Tokens [V]."""
    expert_width: int
    """Inner width of a routed and of a shared expert [F]; 0 when there are none."""
    dense_width: int
    """Inner width of a dense layer's MLP."""
    num_experts: int
    """Routed experts of a MoE layer [E]; 0 for a dense model."""
    experts_per_token: int
    """Experts each token visits [K]; 0 for a dense model."""
    moe_layers: tuple[int, ...]
    """Layers with routed experts, ascending; the others are dense."""
    nope_layers: tuple[int, ...]
    """Layers without rotary embedding, ascending: they attend globally."""
    attention_chunk: int | None
    """Tokens per chunk of the rotary layers' local attention; None: they attend globally too."""
    rope_theta: float
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None
    """Frequency scaling; None: none."""
    rope_interleaved: bool
    """True: pairs are (2j, 2j+1): Llama 4, and Meta's own files. False: (j, j + C/2): Hugging Face Llama 1 to 3."""
    qk_norm: bool
    """Normalise q and k of rotary layers, after rotation, without weights."""
    attn_temperature: bool
    """Scale q of NoPE layers with the position."""
    temperature_floor: float
    """Positions per step of that scale (`floor_scale`)."""
    temperature_scale: float
    """Strength of that scale (`attn_scale`)."""
    norm_eps: float
    """Added to the mean square in every RMS norm."""
    max_positions: int
    """Longest context, in tokens."""
    tie_embeddings: bool
    """True: the LM head is the embedding matrix."""
    bos_id: int | None
    """Beginning-of-text token; None: the model has none."""
    eos_ids: tuple[int, ...]
    """Tokens that end a generation."""
    pad_id: int | None
    """Padding token; None: none."""
    dtype: str
    """Dtype the checkpoint's weights are stored in: float32, bfloat16, float16."""

    @property
    def is_moe(self) -> bool:
        """Tell whether any layer has routed experts."""
        return bool(self.moe_layers)

    def is_local(self, layer: int) -> bool:
        """Tell whether a layer attends within chunks only: rotary layers do, when there is a chunk."""
        return self.attention_chunk is not None and layer not in self.nope_layers

    def check(self, source: str, keys: Mapping[str, str] | None = None) -> None:
        """Check that the numbers fit together; their single ranges are checked where they are read.

        Args:
            source: where the configuration came from, for the message.
            keys: what that source calls our fields; a field not in it has our name there.

        Raises:
            BadConfig: two of them contradict each other.
        """
        for name, expected in self._contradictions():
            key = (keys or {}).get(name, name)
            raise BadConfig(f"{source}: expected {key} to be {expected}, found {getattr(self, name)}: correct the file")

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        """Yield each field that contradicts another, with what it should be."""
        if self.num_heads % self.num_kv_heads:
            yield "num_kv_heads", f"a divisor of the {self.num_heads} query heads"
        if self.head_size % 2:
            yield "head_size", "even, because rotation works on pairs"
        if self.is_moe and not self.num_experts:
            yield "num_experts", "at least 1, because there are MoE layers"
        if self.is_moe and not 1 <= self.experts_per_token <= self.num_experts:
            yield "experts_per_token", f"from 1 to the {self.num_experts} experts"
        if self.is_moe and self.expert_width < 1:
            yield "expert_width", "at least 1, because there are MoE layers"
        if len(self.moe_layers) < self.num_layers and self.dense_width < 1:
            yield "dense_width", "at least 1, because there are dense layers"
        for name, layers in (("moe_layers", self.moe_layers), ("nope_layers", self.nope_layers)):
            if list(layers) != sorted({layer for layer in layers if 0 <= layer < self.num_layers}):
                yield name, f"ascending layers from 0 to {self.num_layers - 1}"
        scaling = self.rope_scaling
        if scaling is not None and scaling.high_freq_factor < scaling.low_freq_factor:
            yield "rope_scaling", "with high_freq_factor at least low_freq_factor"
        for name, ids in (
            ("bos_id", (self.bos_id,)),
            ("eos_ids", self.eos_ids),
            ("pad_id", (self.pad_id,)),
        ):
            if any(token is not None and not 0 <= token < self.vocab_size for token in ids):
                yield name, f"token ids below the vocabulary's {self.vocab_size}"
