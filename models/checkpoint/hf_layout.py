"""Our tensors out of Hugging Face's: Llama 4 with fused or separate experts, and dense Llama."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from models.checkpoint.quantized_layout import fused_blocks, has_linear, linear_block
from models.checkpoint.safetensors_header import read_safetensors_header
from models.checkpoint.source_table import SourceTable
from models.checkpoint.stored_tensor import Block, StoredTensor, whole
from models.checkpoint.tensor_shapes import expert_names, tensor_shapes
from models.config import ModelConfig
from models.json_fields import parse_json_object
from protos.errors import BadCheckpoint

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_LOG = logging.getLogger(__name__)
_TEXT_PREFIX = "language_model."
_IGNORED = ("vision_model.", "multi_modal_projector.", "rotary_emb.inv_freq")


def has_hf_weights(folder: Path) -> bool:
    """Tell whether a folder holds safetensors files under the names Hugging Face gives them."""
    return (folder / SINGLE_FILE).is_file() or (folder / INDEX_FILE).is_file()


def read_hf_table(folder: Path) -> SourceTable:
    """Return what a folder's safetensors files store, names without the prefix of multimodal releases.

    Raises:
        BadCheckpoint: a file is missing or broken.
    """
    if (folder / SINGLE_FILE).is_file():
        stored = read_safetensors_header(folder / SINGLE_FILE)
    elif (folder / INDEX_FILE).is_file():
        stored = _read_shards(folder)
    else:
        raise BadCheckpoint(f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}, found neither{_hint(folder)}")
    if any(name.startswith(_TEXT_PREFIX) for name in stored):
        kept = {name.removeprefix(_TEXT_PREFIX): tensor for name, tensor in stored.items()}
        stored = kept if len(kept) == len(stored) else stored
    return SourceTable(stored, str(folder))


def _hint(folder: Path) -> str:
    """Return what to do about weights in a form that is not read."""
    if any(folder.glob("*.safetensors")):
        return f": download {INDEX_FILE} as well, it says which shard holds what"
    if any(folder.glob("*.bin")) or any(folder.glob("*.gguf")):
        return ": only safetensors files are read; convert or download those"
    return ": download the weights"


def _read_shards(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors that the index names, each from the file the index says."""
    index = folder / INDEX_FILE
    try:
        weight_map = parse_json_object(index.read_bytes()).get("weight_map")
    except OSError as error:
        raise BadCheckpoint(f"{index}: expected a readable file, found: {error.strerror}") from error
    except ValueError as error:
        raise BadCheckpoint(f"{index}: expected a JSON object, found: {error}: download the file again") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadCheckpoint(f"{index}: expected weight_map to map tensors to files, found {weight_map!r:.100}")
    headers: dict[str, dict[str, StoredTensor]] = {}
    stored = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise BadCheckpoint(f"{index}: {name}: expected the name of a file in this folder, found {shard!r}")
        if shard not in headers:
            if not (folder / shard).is_file():
                raise BadCheckpoint(
                    f"{folder / shard}: expected the shard with {name}, found no such file: download it"
                )
            headers[shard] = read_safetensors_header(folder / shard)
        if name not in headers[shard]:
            raise BadCheckpoint(f"{folder / shard}: expected the tensor {name}, as {INDEX_FILE} says, found none")
        stored[name] = headers[shard][name]
    return stored


def map_hf_tensors(config: ModelConfig, table: SourceTable) -> Mapping[str, tuple[Block, ...]]:
    """Return the blocks that make up each of our tensors.

    Raises:
        BadCheckpoint: a tensor is missing or not as the configuration says.
    """
    shapes = tensor_shapes(config)
    blocks: dict[str, tuple[Block, ...]] = {}

    def take(ours: str, theirs: str) -> None:
        blocks[ours] = (whole(table.take(theirs, shapes[ours])),)

    def take_linear(ours: str, theirs: str) -> None:
        blocks[ours] = (linear_block(table, theirs, shapes[ours]),)

    def take_mlp(ours: str, theirs: str) -> None:
        for part in ("gate", "up", "down"):
            take_linear(f"{ours}.{part}", f"{theirs}.{part}_proj")

    take("embed", "model.embed_tokens.weight")
    for layer in range(config.num_layers):
        ours, theirs = f"layers.{layer}", f"model.layers.{layer}"
        take(f"{ours}.attn_norm", f"{theirs}.input_layernorm.weight")
        take(f"{ours}.ffn_norm", f"{theirs}.post_attention_layernorm.weight")
        for part in ("q", "k", "v", "o"):
            take_linear(f"{ours}.attn.{part}", f"{theirs}.self_attn.{part}_proj")
        if layer in config.moe_layers:
            take_linear(f"{ours}.gate", f"{theirs}.feed_forward.router")
            take_mlp(f"{ours}.shared", f"{theirs}.feed_forward.shared_expert")
            blocks |= _expert_blocks(config, table, layer, f"{theirs}.feed_forward.experts")
        else:
            take_mlp(f"{ours}.dense", f"{theirs}.{'feed_forward' if config.family == 'llama4' else 'mlp'}")
    take("norm", "model.norm.weight")
    if "lm_head" in shapes:
        take_linear("lm_head", "lm_head")
    _log_unused(table, config)
    return blocks


def _expert_blocks(config: ModelConfig, table: SourceTable, layer: int, theirs: str) -> dict[str, tuple[Block, ...]]:
    """Return the routed experts of a layer.

    Fused tensors [E, D, 2F] and [E, F, D] hold expert e in one piece. Separate ones are [out, in]: they are
    transposed, and gate and up put side by side.
    """
    hidden, width, count = config.hidden_size, config.expert_width, config.num_experts
    blocks: dict[str, tuple[Block, ...]] = {}
    if not has_linear(table, f"{theirs}.0.gate_proj"):
        gate_up = fused_blocks(table, f"{theirs}.gate_up_proj", (count, hidden, 2 * width))
        down = fused_blocks(table, f"{theirs}.down_proj", (count, width, hidden))
        for expert in range(count):
            gate_up_name, down_name = expert_names(layer, expert)
            blocks[gate_up_name], blocks[down_name] = (gate_up[expert],), (down[expert],)
        return blocks
    for expert in range(count):
        gate_up_name, down_name = expert_names(layer, expert)
        gate, up, down_block = (
            replace(linear_block(table, f"{theirs}.{expert}.{part}_proj", shape), is_transposed=True)
            for part, shape in (("gate", (width, hidden)), ("up", (width, hidden)), ("down", (hidden, width)))
        )
        blocks[gate_up_name], blocks[down_name] = (gate, replace(up, column=width)), (down_block,)
    return blocks


def _log_unused(table: SourceTable, config: ModelConfig) -> None:
    """Say once which tensors are ignored that should not be there; vision towers are no surprise."""
    expected = (*_IGNORED, "lm_head.weight") if config.tie_embeddings else _IGNORED
    unused = [name for name in table.unused() if not any(known in name for known in expected)]
    if unused:
        _LOG.warning("%s: ignoring %d unknown tensors: %s", table.place, len(unused), ", ".join(unused[:5]))
