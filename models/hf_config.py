"""Reads Hugging Face's config.json (Llama 4, its text part alone, or a dense Llama) into a ModelConfig."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from models.config import ModelConfig, RopeScaling
from models.generation_config import generation_fields
from models.json_fields import JsonFields
from models.quantized_config import check_quantization
from protos.errors import BadConfig

HF_CONFIG = "config.json"
# Far above any release; a corrupt number beyond them is refused before it fills the memory.
MAX_LAYERS = 1000
MAX_EXPERTS = 1024

_LOG = logging.getLogger(__name__)

# What config.json calls our fields, for messages.
_KEYS = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "expert_width": "intermediate_size",
    "dense_width": "intermediate_size_mlp",
    "num_experts": "num_local_experts",
    "experts_per_token": "num_experts_per_tok",
    "nope_layers": "no_rope_layers",
    "bos_id": "bos_token_id",
    "eos_ids": "eos_token_id",
    "pad_id": "pad_token_id",
}
_UNSUPPORTED = {
    "mllama": "Llama 3.2 Vision",
    "mllama_text_model": "Llama 3.2 Vision",
    "llama4_vision_model": "a vision tower without its language model",
}


def read_hf_config(folder: Path) -> ModelConfig:
    """Return the architecture that a folder's config.json describes.

    A generation_config.json beside it has the last word on beginning and end tokens: Llama 4's base and instruct
    models differ there only. Fields that files may leave out have transformers' defaults.

    Raises:
        BadConfig: the file is missing or not JSON, a value is out of range or contradicts another, or the model is
            of a kind that Herd does not run.
    """
    outer = JsonFields.load(folder / HF_CONFIG)
    model_type = outer.text("model_type")
    check_quantization(outer)
    if model_type == "llama4":
        text = outer.child("text_config")
        if text is None:
            raise outer.fail("text_config", "an object that describes the language model")
        config = _read_llama4(text, outer, folder)
    elif model_type == "llama4_text":
        config = _read_llama4(outer, outer, folder)
    elif model_type == "llama":
        config = _read_llama(outer, folder)
    else:
        known = _UNSUPPORTED.get(model_type, "an unknown architecture")
        raise BadConfig(
            f"{outer.file}: expected model_type llama4, llama4_text or llama, found {model_type!r} ({known}): "
            "serve a Llama 4 or a text-only Llama model"
        )
    config.check(str(outer.file), _KEYS if config.family == "llama4" else _KEYS | {"dense_width": "intermediate_size"})
    return config


def _read_llama4(text: JsonFields, outer: JsonFields, folder: Path) -> ModelConfig:
    _refuse_variants(text)
    num_layers = text.integer("num_hidden_layers", most=MAX_LAYERS)
    moe_layers = _moe_layers(text, num_layers)
    nope_layers = _nope_layers(text, num_layers)
    num_heads = text.integer("num_attention_heads")
    num_experts = text.integer("num_local_experts", 16, least=0, most=MAX_EXPERTS)
    bos_id, eos_ids, pad_id = _special_ids(text, folder)
    rope_theta, rope_scaling = _rope(text, default_theta=500_000.0)
    if moe_layers and rope_scaling is not None and (rope_scaling.factor, rope_scaling.high_freq_factor) == (8.0, 4.0):
        _LOG.warning(
            "%s: rope scaling has factor 8 and high_freq_factor 4. Scout's first release said so by mistake; "
            "the model was made with 16 and 1: download the corrected config.json if this is Scout",
            text.file,
        )
    return ModelConfig(
        family="llama4",
        num_layers=num_layers,
        hidden_size=text.integer("hidden_size"),
        num_heads=num_heads,
        num_kv_heads=text.integer("num_key_value_heads", num_heads),
        head_size=_head_size(text, num_heads),
        vocab_size=text.integer("vocab_size"),
        expert_width=text.integer("intermediate_size") if moe_layers else 0,
        dense_width=text.integer("intermediate_size_mlp", 16384),
        num_experts=num_experts if moe_layers else 0,
        experts_per_token=text.integer("num_experts_per_tok", 1, most=MAX_EXPERTS) if moe_layers else 0,
        moe_layers=moe_layers,
        nope_layers=nope_layers,
        attention_chunk=_attention_chunk(text, num_layers, nope_layers),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        rope_interleaved=True,
        qk_norm=text.flag("use_qk_norm", True),
        attn_temperature=text.flag("attn_temperature_tuning", True),
        temperature_floor=text.number("floor_scale", 8192.0),
        temperature_scale=text.number("attn_scale", 0.1, least=0.0),
        norm_eps=text.number("rms_norm_eps", 1e-5),
        max_positions=text.integer("max_position_embeddings", 131_072),
        tie_embeddings=text.flag("tie_word_embeddings", False),
        bos_id=bos_id,
        eos_ids=eos_ids,
        pad_id=pad_id,
        dtype=_dtype(text, outer),
    )


def _read_llama(fields: JsonFields, folder: Path) -> ModelConfig:
    _refuse_variants(fields)
    num_heads = fields.integer("num_attention_heads")
    bos_id, eos_ids, pad_id = _special_ids(fields, folder)
    rope_theta, rope_scaling = _rope(fields, default_theta=10_000.0)
    return ModelConfig(
        family="llama",
        num_layers=fields.integer("num_hidden_layers", most=MAX_LAYERS),
        hidden_size=fields.integer("hidden_size"),
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", num_heads),
        head_size=_head_size(fields, num_heads),
        vocab_size=fields.integer("vocab_size"),
        expert_width=0,
        dense_width=fields.integer("intermediate_size"),
        num_experts=0,
        experts_per_token=0,
        moe_layers=(),
        nope_layers=(),
        attention_chunk=None,
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        rope_interleaved=False,
        qk_norm=False,
        attn_temperature=False,
        temperature_floor=8192.0,
        temperature_scale=0.1,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        max_positions=fields.integer("max_position_embeddings", 2048),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        bos_id=bos_id,
        eos_ids=eos_ids,
        pad_id=pad_id,
        dtype=_dtype(fields, fields),
    )


def _refuse_variants(fields: JsonFields) -> None:
    """Refuse what would make Herd's arithmetic wrong without making it fail."""
    fields.refuse(("attention_bias", "mlp_bias"), "no released Llama has biases, and Herd does not add them")
    check_quantization(fields)
    if fields.text("hidden_act", "silu") != "silu":
        raise fields.fail("hidden_act", "'silu', the only activation Herd computes")


def _moe_layers(text: JsonFields, num_layers: int) -> tuple[int, ...]:
    """Return the listed layers, else every step-th one, counted from 1; step 0 means none."""
    listed = text.integers("moe_layers", most=num_layers - 1)
    if listed is not None:
        return listed
    step = text.integer("interleave_moe_layer_step", 1, least=0)
    return tuple(range(step - 1, num_layers, step)) if step else ()


def _nope_layers(text: JsonFields, num_layers: int) -> tuple[int, ...]:
    """Return the layers without rotation. `no_rope_layers` says 1 where a layer HAS it; [] means the default."""
    rotary = text.integers("no_rope_layers", most=1)
    if not rotary:
        interval = text.integer("no_rope_layer_interval", 4)
        return tuple(range(interval - 1, num_layers, interval))
    if len(rotary) != num_layers:
        raise text.fail("no_rope_layers", f"one 0 or 1 for each of the {num_layers} layers, or []")
    return tuple(layer for layer, has_rope in enumerate(rotary) if not has_rope)


def _attention_chunk(text: JsonFields, num_layers: int, nope_layers: tuple[int, ...]) -> int | None:
    """Return the chunk of the rotary layers; `layer_types`, where given, can only confirm it or switch it off."""
    chunk = text.optional_integer("attention_chunk_size") if "attention_chunk_size" in text else 8192
    layer_types = text.texts("layer_types")
    if chunk is None or layer_types is None:
        return chunk
    expected = ["full_attention" if layer in nope_layers else "chunked_attention" for layer in range(num_layers)]
    if list(layer_types) == expected:
        return chunk
    if list(layer_types) == ["full_attention"] * num_layers:
        return None
    raise text.fail("layer_types", "chunked_attention in the rotary layers and full_attention in the others")


def _head_size(fields: JsonFields, num_heads: int) -> int:
    """Return the width of a head, derived from the hidden size where the file does not say."""
    head_size = fields.optional_integer("head_dim")
    if head_size is not None:
        return head_size
    hidden_size = fields.integer("hidden_size")
    if hidden_size % num_heads:
        raise fields.fail("num_attention_heads", f"a divisor of hidden_size {hidden_size}, as head_dim is not given")
    return hidden_size // num_heads


def _rope(fields: JsonFields, default_theta: float) -> tuple[float, RopeScaling | None]:
    """Return base and scaling, from `rope_parameters` or from the older `rope_theta` and `rope_scaling`."""
    rope = fields.child("rope_parameters") or fields.child("rope_scaling")
    theta = fields.number("rope_theta", default_theta)
    if rope is None:
        return theta, None
    theta = rope.number("rope_theta", theta)
    kind_key: Literal["rope_type", "type"] = "rope_type" if rope.has("rope_type") else "type"
    kind = rope.text(kind_key, "default")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise rope.fail(kind_key, "'llama3' or 'default', the only scalings of released Llama models")
    return theta, RopeScaling(
        factor=rope.number("factor", least=1.0),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_positions=rope.integer("original_max_position_embeddings"),
    )


def _special_ids(fields: JsonFields, folder: Path) -> tuple[int | None, tuple[int, ...], int | None]:
    """Return beginning, end and padding tokens; files write -1 for none."""
    generation = generation_fields(folder)

    def ids(key: str) -> tuple[int, ...]:
        source = generation if generation is not None and generation.has(key) else fields
        return tuple(token for token in source.integers(key, least=-1) or () if token >= 0)

    bos, pad = ids("bos_token_id"), ids("pad_token_id")
    return bos[0] if bos else None, ids("eos_token_id"), pad[0] if pad else None


def _dtype(fields: JsonFields, outer: JsonFields) -> str:
    """Return the dtype a file names, in its new or old spelling, outside or inside of the text part."""
    for source in (fields, outer):
        for key in ("dtype", "torch_dtype"):
            if source.has(key):
                name = source.text(key).removeprefix("torch.")
                if name not in ("float32", "bfloat16", "float16"):
                    raise source.fail(key, "float32, bfloat16 or float16")
                return name
    return "bfloat16"
