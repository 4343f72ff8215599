"""Reads Meta's params.json, the one beside consolidated.*.pth, into a ModelConfig."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from models.config import ModelConfig, RopeScaling
from models.hf_config import HF_CONFIG, MAX_EXPERTS, MAX_LAYERS, read_hf_config
from models.json_fields import JsonFields
from protos.errors import BadConfig

META_PARAMS = "params.json"

_LOG = logging.getLogger(__name__)
_KEYS = {
    "num_layers": "n_layers",
    "num_kv_heads": "n_kv_heads",
    "head_size": "head_dim",
    "num_experts": "moe_args.num_experts",
    "experts_per_token": "moe_args.top_k",
    "nope_layers": "nope_layer_interval",
}
# Keys that only Llama 4's params.json has, null or not.
_LLAMA4_KEYS = ("moe_args", "nope_layer_interval", "attention_chunk_size", "use_qk_norm", "ffn_exp")
# Fields that params.json does hold: where all agree, config.json describes the same architecture.
_SHARED_FIELDS = (
    "num_layers",
    "hidden_size",
    "num_heads",
    "num_kv_heads",
    "head_size",
    "vocab_size",
    "expert_width",
    "num_experts",
    "experts_per_token",
    "moe_layers",
    "nope_layers",
    "attention_chunk",
    "rope_theta",
    "qk_norm",
)
# Beginning, end and padding tokens by vocabulary: params.json names none. Source: the tokenizers in
# meta-llama/llama-models.
_SPECIAL_IDS: dict[int, tuple[int, tuple[int, ...], int | None]] = {
    202_048: (200_000, (200_001, 200_007, 200_008), 200_018),
    128_256: (128_000, (128_001, 128_008, 128_009), None),
    32_000: (1, (2,), None),
    32_016: (1, (2,), None),
}


def read_meta_config(folder: Path, *, vocab_size: int | None = None, tie_embeddings: bool = False) -> ModelConfig:
    """Return the architecture that a folder's params.json describes.

    Meta's file is silent on the context length, the special tokens, and most of the rope scaling. Where the same
    model's config.json lies beside it or in the folder above (as `original/` does in Hugging Face repositories),
    those come from there; else they are what Meta's code has built in.

    Args:
        folder: where params.json is.
        vocab_size: rows found in the weights, where params.json says less or nothing; None: no weights are at hand.
        tie_embeddings: whether the weights have no LM head of their own.

    Raises:
        BadConfig: the file is missing or not JSON, a value is out of range or contradicts another, or the model is
            of a kind that Herd does not run.
    """
    outer = JsonFields.load(folder / META_PARAMS)
    params = outer.child("model") or outer
    params.refuse(("quantization_args", "lora_args"), "quantised checkpoints are not supported; use the bf16 release")
    params.refuse(("vision_num_cross_attention_layers", "vision_model"), "Llama 3.2 Vision is not supported")
    vocab_size = _vocab_size(params, vocab_size)
    is_llama4 = any(key in params for key in _LLAMA4_KEYS)
    config = dataclasses.replace(
        _read_llama4(params, vocab_size) if is_llama4 else _read_llama(params, vocab_size),
        tie_embeddings=tie_embeddings,
    )
    config = _with_published_facts(config, folder, params)
    config.check(str(params.file), _KEYS)
    return config


def _read_llama4(params: JsonFields, vocab_size: int) -> ModelConfig:
    num_layers = params.integer("n_layers", most=MAX_LAYERS)
    moe = params.child("moe_args")
    step = moe.integer("interleave_moe_layer_step", 1) if moe is not None else num_layers + 1
    num_experts = moe.integer("num_experts", most=MAX_EXPERTS) if moe is not None else 0
    interval = params.optional_integer("nope_layer_interval")
    nope_layers = tuple(range(interval - 1, num_layers, interval)) if interval else ()
    scaling = RopeScaling(
        factor=params.number("rope_scaling_factor", 16.0, least=1.0),
        low_freq_factor=1.0,
        high_freq_factor=params.number("rope_high_freq_factor", 1.0),
        original_max_positions=8192,
    )
    return dataclasses.replace(
        _read_llama(params, vocab_size),
        family="llama4",
        expert_width=_expert_width(params, moe) if moe is not None else 0,
        dense_width=_round_up(_inner_width(params), params.integer("multiple_of", 256)),
        num_experts=num_experts,
        experts_per_token=moe.integer("top_k", 1, most=MAX_EXPERTS) if moe is not None else 0,
        moe_layers=tuple(range(step - 1, num_layers, step)),
        nope_layers=nope_layers,
        attention_chunk=params.optional_integer("attention_chunk_size"),
        rope_theta=params.number("rope_theta", 500_000.0),
        rope_scaling=scaling if params.flag("use_scaled_rope", False) else None,
        qk_norm=params.flag("use_qk_norm", False),
        attn_temperature=params.flag("attn_temperature_tuning", bool(nope_layers)),
        temperature_floor=params.number("floor_scale", 8192.0),
        temperature_scale=params.number("attn_scale", 0.1, least=0.0),
        max_positions={0: 8192, 16: 10_485_760}.get(num_experts, 1_048_576),
    )


def _read_llama(params: JsonFields, vocab_size: int) -> ModelConfig:
    hidden_size, num_heads = params.integer("dim"), params.integer("n_heads")
    if not params.has("head_dim") and hidden_size % num_heads:
        raise params.fail("n_heads", f"a divisor of dim {hidden_size}, as head_dim is not given")
    bos_id, eos_ids, pad_id = _SPECIAL_IDS.get(vocab_size, (None, (), None))
    rope_theta = params.number("rope_theta", 10_000.0)
    # Meta's code has factor 8 for every Llama 3; the 1B and 3B of Llama 3.2 were made with 32.
    scaling = RopeScaling(
        factor=params.number("rope_scaling_factor", 32.0 if hidden_size < 4096 else 8.0, least=1.0),
        low_freq_factor=1.0,
        high_freq_factor=params.number("rope_high_freq_factor", 4.0),
        original_max_positions=8192,
    )
    is_scaled = params.flag("use_scaled_rope", False)
    norm_eps = params.number("norm_eps", 1e-5)
    return ModelConfig(
        family="llama",
        num_layers=params.integer("n_layers", most=MAX_LAYERS),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=params.integer("n_kv_heads", num_heads),
        head_size=params.integer("head_dim", hidden_size // num_heads),
        vocab_size=vocab_size,
        expert_width=0,
        dense_width=_round_up(_inner_width(params), params.integer("multiple_of", 256)),
        num_experts=0,
        experts_per_token=0,
        moe_layers=(),
        nope_layers=(),
        attention_chunk=None,
        rope_theta=rope_theta,
        rope_scaling=scaling if is_scaled else None,
        rope_interleaved=True,
        qk_norm=False,
        attn_temperature=False,
        temperature_floor=8192.0,
        temperature_scale=0.1,
        norm_eps=norm_eps,
        max_positions=131_072 if is_scaled else _unscaled_context(rope_theta, norm_eps),
        tie_embeddings=False,
        bos_id=bos_id,
        eos_ids=eos_ids,
        pad_id=pad_id,
        dtype="bfloat16",
    )


def _unscaled_context(rope_theta: float, norm_eps: float) -> int:
    """Return the context of Llama 1 (the only one with epsilon 1e-6), Llama 2, Llama 3 or Code Llama, in tokens."""
    if rope_theta == 10_000.0:
        return 2048 if norm_eps < 5e-6 else 4096
    return 16_384 if rope_theta == 1_000_000.0 else 8192


def _inner_width(params: JsonFields) -> int:
    """Return the width of a dense layer's MLP before it is rounded.

    Source: Llama 4 reference, `TransformerBlock` and `MoE`: int(multiplier * int(2 * int(ffn_exp * dim) / 3)).
    """
    width = int(params.number("ffn_exp", 4.0) * params.integer("dim"))
    return int(params.number("ffn_dim_multiplier", 1.0) * int(2 * width / 3))


def _expert_width(params: JsonFields, moe: JsonFields) -> int:
    """Return the width of an expert: a dense layer's, shared out over the experts a token visits."""
    share = moe.number("capacity_factor", 1.0, least=0.0) + 1 if moe.flag("auto_scale_F", True) else 1.0
    return _round_up(int(_inner_width(params) / share), params.integer("multiple_of", 256))


def _round_up(width: int, multiple: int) -> int:
    return -(-width // multiple) * multiple


def _vocab_size(params: JsonFields, rows: int | None) -> int:
    """Return the rows the embedding should have: padding counts, and some releases say -1 or nothing."""
    size = max(params.integer("vocab_size", -1, least=-1), rows or 0)
    if size < 1:
        raise params.fail("vocab_size", "the number of tokens, as no weights are at hand to count them")
    return size


def _with_published_facts(config: ModelConfig, folder: Path, params: JsonFields) -> ModelConfig:
    """Take what params.json does not say from the same model's config.json, if there is one."""
    published = _published_config(config, folder)
    if published is None:
        return config
    scaling = config.rope_scaling
    if scaling is not None and published.rope_scaling is not None:
        said = {
            "factor": params.has("rope_scaling_factor"),
            "high_freq_factor": params.has("rope_high_freq_factor"),
        }
        kept = {name: getattr(scaling, name) for name, is_said in said.items() if is_said}
        scaling = dataclasses.replace(published.rope_scaling, **kept)
    says_temperature = params.has("attn_temperature_tuning")
    return dataclasses.replace(
        config,
        rope_scaling=scaling,
        attn_temperature=config.attn_temperature if says_temperature else published.attn_temperature,
        max_positions=published.max_positions,
        bos_id=published.bos_id,
        eos_ids=published.eos_ids,
        pad_id=published.pad_id,
    )


def _published_config(config: ModelConfig, folder: Path) -> ModelConfig | None:
    """Return what config.json here or one folder up says, if it describes this very architecture."""
    for place in (folder, folder.absolute().parent):
        if not (place / HF_CONFIG).is_file():
            continue
        try:
            published = read_hf_config(place)
        except BadConfig as error:
            _LOG.info("%s is not used to complete %s: %s", place / HF_CONFIG, META_PARAMS, error)
            continue
        if all(getattr(published, name) == getattr(config, name) for name in _SHARED_FIELDS):
            _LOG.info("%s completes %s", place / HF_CONFIG, folder / META_PARAMS)
            return published
    return None
