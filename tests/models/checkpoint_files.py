"""Checkpoints made at test time: tiny random ones in every layout, and sparse files with the real models' shapes."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.config import ModelConfig

HF_FIELDS: dict[str, Any] = {
    "model_type": "llama4_text",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 24,
    "intermediate_size_mlp": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 4,
    "interleave_moe_layer_step": 2,
    "attention_chunk_size": 8,
    "max_position_embeddings": 256,
    "rope_theta": 500000.0,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
META_FIELDS: dict[str, Any] = {
    "dim": 32,
    "n_layers": 4,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 8,
    "vocab_size": 96,
    "multiple_of": 8,
    "ffn_dim_multiplier": 0.5,
    "ffn_exp": 4.0,
    "norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "attention_chunk_size": 8,
    "nope_layer_interval": 4,
    "use_qk_norm": True,
    "moe_args": {"num_experts": 4, "top_k": 1, "interleave_moe_layer_step": 2},
}
# What META_FIELDS' formula gives: int(0.5 * int(2 * 128 / 3)) = 42, in eights 48; int(42 / 2) = 21, in eights 24.
META_DENSE_WIDTH = 48


META_SCALE_NAMES = {
    "experts.moe_w_in_eD_F": "experts.w1",
    "experts.moe_w_swiglu_eD_F": "experts.w3",
    "experts.moe_w_out_eF_D": "experts.w2",
    "w_in_shared_FD.weight": "shared_expert.w1",
    "w_swiglu_FD.weight": "shared_expert.w3",
    "w_out_shared_DF.weight": "shared_expert.w2",
}
Scales = dict[str, Tensor]


def write_json(file: Path, value: object) -> None:
    """Write a value as JSON; NaN is written as Python writes it, which is not JSON."""
    file.write_text(json.dumps(value))


def hf_tensors(
    *, hidden: int = 32, dense_width: int = 40, expert_width: int = 24, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Return random weights for HF_FIELDS, or other widths, under Hugging Face's names, experts fused."""
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    tensors = {"model.embed_tokens.weight": random(96, hidden), "model.norm.weight": random(hidden)}
    tensors["lm_head.weight"] = random(96, hidden)
    for layer in range(4):
        name = f"model.layers.{layer}"
        tensors[f"{name}.input_layernorm.weight"] = random(hidden)
        tensors[f"{name}.post_attention_layernorm.weight"] = random(hidden)
        for part, rows, columns in (("q", 32, hidden), ("k", 16, hidden), ("v", 16, hidden), ("o", hidden, 32)):
            tensors[f"{name}.self_attn.{part}_proj.weight"] = random(rows, columns)
        is_moe = layer % 2 == 1
        mlp, width = (
            (f"{name}.feed_forward.shared_expert", expert_width) if is_moe else (f"{name}.feed_forward", dense_width)
        )
        tensors[f"{mlp}.gate_proj.weight"] = random(width, hidden)
        tensors[f"{mlp}.up_proj.weight"] = random(width, hidden)
        tensors[f"{mlp}.down_proj.weight"] = random(hidden, width)
        if is_moe:
            tensors[f"{name}.feed_forward.router.weight"] = random(4, hidden)
            tensors[f"{name}.feed_forward.experts.gate_up_proj"] = random(4, hidden, 2 * expert_width)
            tensors[f"{name}.feed_forward.experts.down_proj"] = random(4, expert_width, hidden)
    return tensors


def write_hf(folder: Path, tensors: dict[str, Tensor] | None = None, **changes: object) -> Path:
    """Write a folder with one safetensors file; `changes` go into config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", HF_FIELDS | changes)
    save_file(hf_tensors() if tensors is None else tensors, folder / "model.safetensors")
    return folder


def write_hf_shards(folder: Path, tensors: dict[str, Tensor], num_shards: int) -> Path:
    """Write a folder whose tensors are dealt out to several files, with the index."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", HF_FIELDS)
    names = [f"model-{shard + 1:05}-of-{num_shards:05}.safetensors" for shard in range(num_shards)]
    weight_map = {name: names[index % num_shards] for index, name in enumerate(sorted(tensors))}
    for file in names:
        save_file({name: tensors[name] for name, where in weight_map.items() if where == file}, folder / file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": weight_map})
    return folder


def with_separate_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same weights with three [out, in] tensors per expert, as compressed-tensors releases have them."""
    separate = {}
    for name, tensor in tensors.items():
        prefix, _, kind = name.rpartition(".")
        if kind == "gate_up_proj":
            for expert, gate_up in enumerate(tensor):
                gate, up = gate_up.chunk(2, dim=1)
                separate[f"{prefix}.{expert}.gate_proj.weight"] = gate.T.contiguous()
                separate[f"{prefix}.{expert}.up_proj.weight"] = up.T.contiguous()
        elif kind == "down_proj":
            for expert, down in enumerate(tensor):
                separate[f"{prefix}.{expert}.down_proj.weight"] = down.T.contiguous()
        else:
            separate[name] = tensor
    return separate


def packed_int4(codes_OI: Tensor) -> Tensor:
    """Return codes in -8..7 as compressed-tensors packs them: eight to an int32, the first in the lowest bits."""
    nibbles = (codes_OI.long() + 8).unflatten(1, (-1, 8))
    words = torch.stack([nibbles[..., place] << 4 * place for place in range(8)]).sum(0)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def as_int4(tensors: dict[str, Tensor], name: str, group: int) -> dict[str, Tensor]:
    """Return weights of which one linear layer is kept as symmetric int4 in groups of inputs, scales in bfloat16."""
    weight = tensors[f"{name}.weight"].float()
    groups = weight.unflatten(1, (-1, group))
    scale = (groups.abs().amax(-1, keepdim=True) / 7.5).bfloat16()
    codes = (groups / scale.float()).round().clamp(-8, 7).flatten(1)
    rest = {key: value for key, value in tensors.items() if key != f"{name}.weight"}
    return rest | {
        f"{name}.weight_packed": packed_int4(codes),
        f"{name}.weight_scale": scale[..., 0],
        f"{name}.weight_shape": torch.tensor(weight.shape),
    }


def as_fp8(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return weights of which one linear layer is kept as fp8 with a scale for each output."""
    weight = tensors[f"{name}.weight"].float()
    scale = weight.abs().amax(1, keepdim=True) / 448
    return tensors | {f"{name}.weight": (weight / scale).to(torch.float8_e4m3fn), f"{name}.weight_scale": scale}


def meta_shards(tensors: dict[str, Tensor], num_shards: int) -> list[dict[str, Any]]:
    """Return weights under Hugging Face's names as Meta's shards, split as in the published files."""
    shards: list[dict[str, Any]] = [{} for _ in range(num_shards)]

    def put(name: str, parts: list[Tensor] | tuple[Tensor, ...]) -> None:
        for shard, part in zip(shards, parts, strict=True):
            shard[name] = part.clone()

    def split(name: str, tensor: Tensor, dim: int) -> None:
        put(name, tensor.chunk(num_shards, dim))

    def stack(name: str, *stacked: Tensor) -> None:
        chunks = [tensor.chunk(num_shards, 0) for tensor in stacked]
        put(name, [torch.cat(parts) for parts in zip(*chunks, strict=True)])

    split("tok_embeddings.weight", tensors["model.embed_tokens.weight"], 0)
    split("output.weight", tensors["lm_head.weight"], 0)
    put("norm.weight", [tensors["model.norm.weight"]] * num_shards)
    for layer in range(4):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        q, k, v = (tensors[f"{theirs}.self_attn.{part}_proj.weight"] for part in "qkv")
        stack(f"{ours}.attention.wqkv.weight", q, k, v)
        put(f"{ours}.attention.wqkv.layer_norm_weight", [tensors[f"{theirs}.input_layernorm.weight"]] * num_shards)
        split(f"{ours}.attention.wo.weight", tensors[f"{theirs}.self_attn.o_proj.weight"], 1)
        norm = [tensors[f"{theirs}.post_attention_layernorm.weight"]] * num_shards
        for shard in shards:
            shard[f"{ours}.attention.wo._extra_state"] = io.BytesIO(b"\x80state")
        ours, theirs = f"{ours}.feed_forward", f"{theirs}.feed_forward"
        if f"{theirs}.router.weight" not in tensors:
            put(f"{ours}.mlp.layer_norm_weight", norm)
            gate, up = tensors[f"{theirs}.gate_proj.weight"], tensors[f"{theirs}.up_proj.weight"]
            stack(f"{ours}.mlp.fc1_weight", gate, up)
            split(f"{ours}.mlp.fc2_weight", tensors[f"{theirs}.down_proj.weight"], 1)
            continue
        put(f"{ours}.norm.weight", norm)
        put(f"{ours}.router_DE", [tensors[f"{theirs}.router.weight"].T.contiguous()] * num_shards)
        put(f"{ours}.global_gate_stats_3E", [torch.zeros(3, 4)] * num_shards)
        split(f"{ours}.w_in_shared_FD.weight", tensors[f"{theirs}.shared_expert.gate_proj.weight"], 0)
        split(f"{ours}.w_swiglu_FD.weight", tensors[f"{theirs}.shared_expert.up_proj.weight"], 0)
        split(f"{ours}.w_out_shared_DF.weight", tensors[f"{theirs}.shared_expert.down_proj.weight"], 1)
        gate, up = tensors[f"{theirs}.experts.gate_up_proj"].chunk(2, dim=2)
        down = tensors[f"{theirs}.experts.down_proj"]
        put(f"{ours}.experts.moe_w_in_eD_F", [t.flatten(0, 1) for t in gate.chunk(num_shards, 2)])
        put(f"{ours}.experts.moe_w_swiglu_eD_F", [t.flatten(0, 1) for t in up.chunk(num_shards, 2)])
        put(f"{ours}.experts.moe_w_out_eF_D", [t.flatten(0, 1) for t in down.chunk(num_shards, 1)])
    return shards


def as_meta_int4(shard: dict[str, Any], group: int, *, rounds_shared: bool = True) -> tuple[dict[str, Any], Scales]:
    """Return a shard of `meta_shards` whose experts Meta's script has rounded to four bits, and its scales.

    Args:
        shard: of META_FIELDS.
        group: inputs that share a scale; the script's are of 128.
        rounds_shared: as one version of the script does, which calls scales as weights; another leaves shared experts
            and, of the routed ones, the last layer's as they are, and has other names.
    """
    layers = (1, 3) if rounds_shared else (1,)
    weights: dict[str, Any] = dict(shard)
    scales = {}
    for prefix in (f"layers.{layer}.feed_forward" for layer in layers):
        for name, other in META_SCALE_NAMES.items():
            is_routed = name.startswith("experts.")
            if not is_routed and not rounds_shared:
                continue
            weight = shard[f"{prefix}.{name}"]
            by_expert = weight.unflatten(0, (4, -1)).transpose(1, 2) if is_routed else weight[None]
            packed, scale = zip(*(packed_pairs(each, group) for each in by_expert), strict=True)
            codes = torch.stack(packed).transpose(1, 2).flatten(0, 1).contiguous() if is_routed else packed[0]
            weights[f"{prefix}.{name}"] = torch.nn.Parameter(codes.view(torch.float8_e4m3fn), requires_grad=False)
            scales[f"{prefix}.{name if rounds_shared else other}"] = torch.stack(scale) if is_routed else scale[0]
    return weights, scales


def packed_pairs(weight_OI: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Return codes [O, I / 2] int8, two in two's complement, and scales [I / group, O], as Meta rounds and packs."""
    groups = weight_OI.float().unflatten(1, (-1, group))
    scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-6) / 8
    codes = (groups / scale).round().clamp(-8, 7).flatten(1).to(torch.int8)
    return (codes[:, ::2] & 15) | (codes[:, 1::2] << 4), scale[..., 0].t().contiguous()


def as_meta_fp8(shard: dict[str, Any]) -> tuple[dict[str, Any], Scales]:
    """Return a shard of `meta_shards` whose routed experts Meta's script has rounded to fp8, and its scales."""
    weights: dict[str, Any] = dict(shard)
    scales = {}
    for prefix in ("layers.1.feed_forward", "layers.3.feed_forward"):
        for name, other in META_SCALE_NAMES.items():
            if name.startswith("experts."):
                by_expert = shard[f"{prefix}.{name}"].unflatten(0, (4, -1))
                scale = by_expert.abs().amax(1) / 448
                codes = (by_expert / scale[:, None]).to(torch.float8_e4m3fn)
                weights[f"{prefix}.{name}"] = torch.nn.Parameter(codes.flatten(0, 1), requires_grad=False)
                scales[f"{prefix}.{other}"] = scale
    return weights, scales


def write_meta(folder: Path, shards: list[dict[str, Any]], **changes: object) -> Path:
    """Write a folder with params.json and one torch file per shard."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "params.json", META_FIELDS | changes)
    for number, shard in enumerate(shards):
        torch.save(shard, folder / f"consolidated.{number:02}.pth")
    return folder


def write_safetensors(file: Path, header: object, num_data_bytes: int) -> None:
    """Write a safetensors file with any header and that many zero bytes of data, which take no disk space."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + num_data_bytes)


def read_header(file: Path) -> tuple[dict[str, Any], bytes]:
    """Return a safetensors file's header and data."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_sparse_release(folder: Path, model: ModelConfig, fields: dict[str, Any]) -> Path:
    """Write a bf16 release with real names and shapes, one file per layer, that takes no disk space."""
    hidden, width = model.hidden_size, model.expert_width
    kv_width = model.num_kv_heads * model.head_size
    files: dict[str, dict[str, list[int]]] = {
        "ends.safetensors": {
            "language_model.model.embed_tokens.weight": [model.vocab_size, hidden],
            "language_model.model.norm.weight": [hidden],
            "language_model.lm_head.weight": [model.vocab_size, hidden],
            "vision_model.class_embedding": [1408],
        }
    }
    for layer in range(model.num_layers):
        is_moe = layer in model.moe_layers
        mlp, inner = ("feed_forward.shared_expert", width) if is_moe else ("feed_forward", model.dense_width)
        shapes = {
            "input_layernorm.weight": [hidden],
            "post_attention_layernorm.weight": [hidden],
            "self_attn.q_proj.weight": [hidden, hidden],
            "self_attn.k_proj.weight": [kv_width, hidden],
            "self_attn.v_proj.weight": [kv_width, hidden],
            "self_attn.o_proj.weight": [hidden, hidden],
            f"{mlp}.gate_proj.weight": [inner, hidden],
            f"{mlp}.up_proj.weight": [inner, hidden],
            f"{mlp}.down_proj.weight": [hidden, inner],
        }
        if is_moe:
            shapes["feed_forward.router.weight"] = [model.num_experts, hidden]
            shapes["feed_forward.experts.gate_up_proj"] = [model.num_experts, hidden, 2 * width]
            shapes["feed_forward.experts.down_proj"] = [model.num_experts, width, hidden]
        prefix = f"language_model.model.layers.{layer}"
        files[f"layer-{layer}.safetensors"] = {f"{prefix}.{name}": shape for name, shape in shapes.items()}
    for file, shapes in files.items():
        header, end = {}, 0
        for name, shape in shapes.items():
            begin, end = end, end + 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
        write_safetensors(folder / file, header, end)
    weight_map = {name: file for file, shapes in files.items() for name in shapes}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    write_json(folder / "config.json", fields)
    return folder
