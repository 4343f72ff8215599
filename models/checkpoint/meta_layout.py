"""Our tensors out of Meta's consolidated.*.pth: one file, or shards of a model-parallel run put together.

A shard holds for each split tensor its share of rows ([out, in]: the output split) or of columns (the input split);
norms and gates are in every shard alike. Source: meta-llama/llama-models, models/checkpoint.py.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from models.checkpoint.meta_codes import expert_blocks, linear_block, with_scales
from models.checkpoint.source_table import SourceTable
from models.checkpoint.stored_tensor import Block, whole
from models.checkpoint.tensor_shapes import expert_names, tensor_shapes
from models.checkpoint.torch_archive import read_torch_archive
from models.config import ModelConfig
from protos.errors import BadCheckpoint

_LOG = logging.getLogger(__name__)
_SHARD_NAME = re.compile(r"consolidated\.(\d+)\.pth")
_IGNORED = re.compile(
    r"vision_|_extra_state$|rope\.freqs$|freqs_cis$|gate_stats_3E$|expert_activation_DE$|attention\.inner_attention\."
)


def read_meta_tables(folder: Path) -> list[SourceTable]:
    """Return what each shard stores, in the order of their numbers.

    Raises:
        BadCheckpoint: a shard is missing or broken.
    """
    numbered = {
        int(match[1]): file for file in folder.glob("consolidated.*.pth") if (match := _SHARD_NAME.fullmatch(file.name))
    }
    if not numbered:
        raise BadCheckpoint(
            f"{folder}: expected consolidated.00.pth beside params.json, found none: download the weights"
        )
    missing = sorted(set(range(max(numbered) + 1)) - set(numbered))
    if missing:
        raise BadCheckpoint(
            f"{folder / f'consolidated.{missing[0]:02}.pth'}: expected shards 0 to {max(numbered)}, "
            "found no such file: download it"
        )
    return [
        SourceTable(with_scales(read_torch_archive(numbered[shard]), folder, shard), str(numbered[shard]))
        for shard in sorted(numbered)
    ]


def count_vocabulary(tables: Sequence[SourceTable]) -> int:
    """Return the rows of the embedding over all shards; Llama 1 and 2 split its columns instead."""
    name = "output.weight" if "output.weight" in tables[0] else "tok_embeddings.weight"
    return sum(sum(table.find(name).shape[:1]) for table in tables)


def map_meta_tensors(config: ModelConfig, tables: Sequence[SourceTable]) -> Mapping[str, tuple[Block, ...]]:
    """Return the blocks that make up each of our tensors.

    Raises:
        BadCheckpoint: a tensor or a shard is missing, or is not as the configuration says.
    """
    shards = _Shards(tables, tensor_shapes(config))
    _check_count(config, tables)
    blocks: dict[str, tuple[Block, ...]] = {}
    blocks["embed"] = shards.embedding()
    for layer in range(config.num_layers):
        blocks |= _attention_blocks(shards, layer)
        blocks |= _moe_blocks(config, shards, layer) if layer in config.moe_layers else _dense_blocks(shards, layer)
    blocks["norm"] = shards.same("norm", "norm.weight")
    if not config.tie_embeddings:
        blocks["lm_head"] = shards.rows("lm_head", "output.weight")
    unused = sorted({name for table in tables for name in table.unused() if not _IGNORED.search(name)})
    if unused:
        _LOG.warning("%s: ignoring %d unknown tensors: %s", tables[0].place, len(unused), ", ".join(unused[:5]))
    return blocks


def _check_count(config: ModelConfig, tables: Sequence[SourceTable]) -> None:
    """Check that as many shards are there as the first one's share of a tensor implies."""
    first, width = tables[0].find("layers.0.attention.wo.weight"), config.num_heads * config.head_size
    share = first.shape[-1] if first.shape else 0
    if share and width % share == 0 and width // share != len(tables):
        raise BadCheckpoint(
            f"{first.file}: {first.name}: expected {width // share} shards, as its {share} of {width} columns imply, "
            f"found {len(tables)}: download consolidated.00.pth to consolidated.{width // share - 1:02}.pth"
        )


@dataclass(frozen=True, slots=True)
class _Shards:
    """All shards, and our shapes: turns one of our tensors into the blocks that lie in each."""

    tables: Sequence[SourceTable]
    shapes: Mapping[str, tuple[int, ...]]

    def share(self, extent: int, name: str) -> int:
        """Return one shard's part of an extent."""
        if extent % len(self.tables):
            raise BadCheckpoint(
                f"{name}: expected an extent that {len(self.tables)} shards divide, found {extent}: "
                f"weights and configuration are of different models ({self.tables[0].place})"
            )
        return extent // len(self.tables)

    def same(self, ours: str, *theirs: str, is_transposed: bool = False) -> tuple[Block, ...]:
        """Return a tensor that all shards hold alike; the first one's is read."""
        shape = self.shapes[ours]
        stored_shape = tuple(reversed(shape)) if is_transposed else shape
        for table in self.tables[1:]:
            table.take(table.first_of(theirs), stored_shape)
        return (whole(self.tables[0].take(self.tables[0].first_of(theirs), stored_shape), is_transposed=is_transposed),)

    def rows(self, ours: str, theirs: str, *, stack: tuple[str, ...] = ()) -> tuple[Block, ...]:
        """Return a tensor whose rows are split.

        Args:
            ours: our name of it.
            theirs: the file's name of it, or of a stack of several.
            stack: our names of what each shard stacks in `theirs`, in order; empty: just this tensor.
        """
        blocks = []
        for shard, table in enumerate(self.tables):
            shares = [self.share(self.shapes[name][0], name) for name in stack or (ours,)]
            first = sum(shares[: stack.index(ours)]) if stack else 0
            num_rows = self.share(self.shapes[ours][0], ours)
            stacked = linear_block(table, theirs, (sum(shares), self.shapes[ours][1]))
            if stack:
                stacked = replace(stacked, first_row=first, num_rows=num_rows)
            blocks.append(replace(stacked, row=shard * num_rows))
        return tuple(blocks)

    def columns(self, ours: str, theirs: str) -> tuple[Block, ...]:
        """Return a tensor whose columns are split."""
        num_rows, num_columns = self.shapes[ours]
        share = self.share(num_columns, ours)
        return tuple(
            replace(linear_block(table, theirs, (num_rows, share)), column=shard * share)
            for shard, table in enumerate(self.tables)
        )

    def embedding(self) -> tuple[Block, ...]:
        """Return the embedding, of which the first releases split the columns and later ones the rows."""
        name = "tok_embeddings.weight"
        is_by_column = self.tables[0].find(name).shape[:1] == self.shapes["embed"][:1] and len(self.tables) > 1
        return self.columns("embed", name) if is_by_column else self.rows("embed", name)


def _attention_blocks(shards: _Shards, layer: int) -> dict[str, tuple[Block, ...]]:
    """Return norms and projections of a layer; Llama 4 stacks q, k and v of each shard in one tensor."""
    ours, theirs = f"layers.{layer}", f"layers.{layer}.attention"
    stack = tuple(f"{ours}.attn.{part}" for part in "qkv")
    is_stacked = f"{theirs}.wqkv.weight" in shards.tables[0]
    feed_forward = f"layers.{layer}.feed_forward"
    return {
        f"{ours}.attn_norm": shards.same(
            f"{ours}.attn_norm", f"layers.{layer}.attention_norm.weight", f"{theirs}.wqkv.layer_norm_weight"
        ),
        f"{ours}.ffn_norm": shards.same(
            f"{ours}.ffn_norm",
            f"layers.{layer}.ffn_norm.weight",
            f"{feed_forward}.norm.weight",
            f"{feed_forward}.mlp.layer_norm_weight",
            f"{feed_forward}.mlp.layer_norm.weight",
        ),
        f"{ours}.attn.o": shards.columns(f"{ours}.attn.o", f"{theirs}.wo.weight"),
    } | {
        f"{ours}.attn.{part}": shards.rows(f"{ours}.attn.{part}", f"{theirs}.wqkv.weight", stack=stack)
        if is_stacked
        else shards.rows(f"{ours}.attn.{part}", f"{theirs}.w{part}.weight")
        for part in "qkv"
    }


def _dense_blocks(shards: _Shards, layer: int) -> dict[str, tuple[Block, ...]]:
    """Return a dense layer's MLP; Llama 4 stacks gate and up of each shard in one tensor."""
    ours, theirs = f"layers.{layer}.dense", f"layers.{layer}.feed_forward"
    gate, up, down = f"{ours}.gate", f"{ours}.up", f"{ours}.down"
    if f"{theirs}.mlp.fc1_weight" in shards.tables[0]:
        fused = f"{theirs}.mlp.fc1_weight"
        return {
            gate: shards.rows(gate, fused, stack=(gate, up)),
            up: shards.rows(up, fused, stack=(gate, up)),
            down: shards.columns(down, f"{theirs}.mlp.fc2_weight"),
        }
    return {
        gate: shards.rows(gate, f"{theirs}.w1.weight"),
        up: shards.rows(up, f"{theirs}.w3.weight"),
        down: shards.columns(down, f"{theirs}.w2.weight"),
    }


def _moe_blocks(config: ModelConfig, shards: _Shards, layer: int) -> dict[str, tuple[Block, ...]]:
    """Return the gate, the shared expert and the routed experts, whose rows are stacked by expert: [E·D, F/n]."""
    ours, theirs = f"layers.{layer}", f"layers.{layer}.feed_forward"
    gate, up, down = (f"{ours}.shared.{part}" for part in ("gate", "up", "down"))
    blocks = {
        f"{ours}.gate": shards.same(f"{ours}.gate", f"{theirs}.router_DE", is_transposed=True),
        gate: shards.rows(gate, f"{theirs}.w_in_shared_FD.weight"),
        up: shards.rows(up, f"{theirs}.w_swiglu_FD.weight"),
        down: shards.columns(down, f"{theirs}.w_out_shared_DF.weight"),
    }
    hidden, count = config.hidden_size, config.num_experts
    width = shards.share(config.expert_width, f"{ours}.experts")
    for shard, table in enumerate(shards.tables):
        w_in = expert_blocks(table, f"{theirs}.experts.moe_w_in_eD_F", (count, hidden, width))
        w_up = expert_blocks(table, f"{theirs}.experts.moe_w_swiglu_eD_F", (count, hidden, width))
        w_out = expert_blocks(table, f"{theirs}.experts.moe_w_out_eF_D", (count, width, hidden))
        for expert in range(count):
            gate_up_name, down_name = expert_names(layer, expert)
            blocks[gate_up_name] = (
                *blocks.get(gate_up_name, ()),
                replace(w_in[expert], column=shard * width),
                replace(w_up[expert], column=config.expert_width + shard * width),
            )
            blocks[down_name] = (
                *blocks.get(down_name, ()),
                replace(w_out[expert], row=shard * width),
            )
    return blocks
