"""Weights that Meta's own script has rounded: codes in consolidated.*.pth, scales in a file for each shard beside it.

    int4_scales_N.pt    two codes to a byte, which is saved as an e4m3 number, so that torch takes it for a parameter.
                        Routed experts lie [in / 2, out], one under the other, shared ones, which some versions of the
                        script round too, [out, in / 2]. Scales are float32, [groups of inputs, out]
    fp8_scales_N.pt     routed experts in e4m3, [in, out], and a scale for each output of a shard

Which layers have codes, the file of scales says: versions of the script leave out the first and the last one, or none.
Each shard is rounded by itself. Source: meta-llama/llama-models, models/llama4/scripts/quantize.py at 699a029 and at
5aca3f4, whose names of scales differ, models/llama4/quantization/loader.py and models/quantize_impls.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from models.checkpoint.codes import CODES_PER_ELEMENT
from models.checkpoint.source_table import SourceTable
from models.checkpoint.stored_tensor import Block, StoredTensor, whole
from models.checkpoint.torch_archive import read_torch_archive
from protos.errors import BadCheckpoint

_INT4, _FP8 = "int4_scales_{}.pt", "fp8_scales_{}.pt"
_PAIRS, _E4M3 = "I8", "F8_E4M3"
_SCALES = ".scales"
# A weight's name after its layer's, and the name that one version of the script gives to its scales.
_SCALE_NAMES = {
    "experts.moe_w_in_eD_F": "experts.w1",
    "experts.moe_w_swiglu_eD_F": "experts.w3",
    "experts.moe_w_out_eF_D": "experts.w2",
    "w_in_shared_FD.weight": "shared_expert.w1",
    "w_swiglu_FD.weight": "shared_expert.w3",
    "w_out_shared_DF.weight": "shared_expert.w2",
}
_ROUNDED = re.compile(rf"(layers\.\d+\.feed_forward\.)({'|'.join(map(re.escape, _SCALE_NAMES))})")


def with_scales(stored: Mapping[str, StoredTensor], folder: Path, shard: int) -> dict[str, StoredTensor]:
    """Return a shard's tensors and the scales of those that are codes, under names that the functions below know.

    Args:
        stored: what the shard's own file stores.
        folder: where files of scales may be.
        shard: its number.

    Raises:
        BadCheckpoint: a file of scales is broken, there are two, or a weight in codes has no scales.
    """
    files = [folder / name.format(shard) for name in (_INT4, _FP8) if (folder / name.format(shard)).is_file()]
    if len(files) > 1:
        raise BadCheckpoint(f"{files[0]}: expected one file of scales for a shard, found {files[1].name}: remove one")
    scales = read_torch_archive(files[0]) if files else {}
    is_int4 = bool(files) and files[0].name == _INT4.format(shard)
    found = dict(stored)
    for name, tensor in stored.items():
        match = _ROUNDED.fullmatch(name)
        if match is None or tensor.dtype not in (_PAIRS, _E4M3):
            continue
        scale = scales.get(name) or scales.get(match[1] + _SCALE_NAMES[match[2]])
        if scale is None:
            raise BadCheckpoint(
                f"{tensor.file}: {name}: expected its scales in {_INT4.format(shard)} or {_FP8.format(shard)} beside, "
                "found none: download that file as well"
            )
        found[name + _SCALES] = scale
        found[name] = replace(tensor, dtype=_PAIRS) if is_int4 else tensor
    return found


def linear_block(table: SourceTable, name: str, shape: tuple[int, int]) -> Block:
    """Return a shard of a projection [out, in], as it is or two codes to a byte.

    Raises:
        BadCheckpoint: it is missing, or not as the configuration says.
    """
    if name + _SCALES not in table:
        return whole(table.take(name, shape))
    num_outputs, num_inputs = shape
    groups = _num_groups(table, name, num_inputs, 0)
    scales = table.take(name + _SCALES, (groups, num_outputs))
    codes = table.take(name, (num_outputs, num_inputs // CODES_PER_ELEMENT[_PAIRS]), (_PAIRS,))
    return replace(whole(codes), scales=whole(scales, is_transposed=True))


def expert_blocks(table: SourceTable, name: str, shape: tuple[int, int, int]) -> list[Block]:
    """Return a shard of all experts' matrices, which lie under each other, each [in, out].

    Args:
        table: what the shard stores.
        name: of the tensor.
        shape: (E, in, out).

    Raises:
        BadCheckpoint: it is missing, or not as the configuration says.
    """
    count, num_inputs, num_outputs = shape
    if name + _SCALES not in table:
        weights = table.take(name, (count * num_inputs, num_outputs))
        return [Block(weights, expert * num_inputs, num_inputs) for expert in range(count)]
    if table.find(name).dtype == _E4M3:
        codes = table.take(name, (count * num_inputs, num_outputs), (_E4M3,))
        scales = table.take(name + _SCALES, (count, num_outputs))
        return [
            Block(codes, expert * num_inputs, num_inputs, scales=Block(scales, expert, 1)) for expert in range(count)
        ]
    groups, num_rows = _num_groups(table, name, num_inputs, 1), num_inputs // CODES_PER_ELEMENT[_PAIRS]
    scales = table.take(name + _SCALES, (count, groups, num_outputs))
    codes = table.take(name, (count * num_rows, num_outputs), (_PAIRS,))
    return [
        Block(
            codes,
            expert * num_rows,
            num_rows,
            scales=Block(scales, expert * groups, groups),
            is_packed_by_column=True,
        )
        for expert in range(count)
    ]


def _num_groups(table: SourceTable, name: str, num_inputs: int, dim: int) -> int:
    """Return the groups of inputs that share a scale, an extent of the scales."""
    scale = table.find(name + _SCALES)
    groups = scale.shape[dim] if len(scale.shape) == dim + 2 else 0
    if not groups or num_inputs % (CODES_PER_ELEMENT[_PAIRS] * groups):
        raise BadCheckpoint(
            f"{scale.file}: {scale.name}: expected scales for whole groups of {num_inputs} inputs, found shape "
            f"{list(scale.shape)}: weights and configuration are of different models"
        )
    return groups
