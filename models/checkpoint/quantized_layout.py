"""How Hugging Face's checkpoints keep weights, as they are or as codes with scales.

What is stored decides, not what the configuration says should be: so what its list of exceptions names comes as it is.

    NAME.weight [O, I]                                      as it is
    NAME.weight [O, I] e4m3, NAME.weight_scale [O, 1]       fp8, released as compressed-tensors and fbgemm_fp8
    NAME.weight_packed [O, I / 8] int32, NAME.weight_scale [O, I / group], NAME.weight_shape      int4 (w4a16)
    gate_up_proj [E, D, 2F] e4m3, gate_up_proj_scale [E, 1, 2F]; down_proj [E, F, D], down_proj_scale [E, D, 1]
                                                            fused experts of fbgemm_fp8
"""

from __future__ import annotations

from models.checkpoint.codes import CODES_PER_ELEMENT
from models.checkpoint.source_table import SourceTable
from models.checkpoint.stored_tensor import WEIGHT_DTYPES, Block, StoredTensor, whole
from protos.errors import BadCheckpoint

_FP8, _PACKED = "F8_E4M3", "I32"
_REFUSED = {
    "weight_zero_point": "codes are not symmetric",
    "weight_g_idx": "inputs are reordered (actorder)",
    "weight_global_scale": "scales have a scale of their own (NVFP4)",
}


def has_linear(table: SourceTable, name: str) -> bool:
    """Tell whether a linear layer is stored, in any form."""
    return f"{name}.weight" in table or f"{name}.weight_packed" in table


def linear_block(table: SourceTable, name: str, shape: tuple[int, ...]) -> Block:
    """Return a linear layer's weight.

    Args:
        table: what is stored.
        name: of the layer, without ".weight".
        shape: (O, I).

    Raises:
        BadCheckpoint: it is missing, not as the configuration says, or in a form that is not read.
    """
    for suffix, reason in _REFUSED.items():
        if f"{name}.{suffix}" in table:
            raise BadCheckpoint(
                f"{table.place}: {name}: expected weights as they are, fp8 with a scale for each output or symmetric "
                f"int4, found {suffix}: {reason}; use another release of the model"
            )
    if f"{name}.weight_packed" in table:
        return _packed_block(table, name, shape)
    weight = table.take(f"{name}.weight", shape, (*WEIGHT_DTYPES, _FP8))
    if weight.dtype != _FP8:
        return whole(weight)
    return Block(weight, 0, weight.num_rows, scales=whole(table.take(f"{name}.weight_scale", (shape[0], 1))))


def fused_blocks(table: SourceTable, name: str, shape: tuple[int, int, int]) -> list[Block]:
    """Return the weights of all experts that one tensor holds, each [in, out].

    Args:
        table: what is stored.
        name: of the tensor.
        shape: (E, in, out).

    Raises:
        BadCheckpoint: it is missing, or not as the configuration says.
    """
    count, num_inputs, num_outputs = shape
    weights = table.take(name, shape, (*WEIGHT_DTYPES, _FP8))
    scales = _fused_scales(table, name, count, num_outputs) if weights.dtype == _FP8 else [None] * count
    return [Block(weights, expert * num_inputs, num_inputs, scales=scale) for expert, scale in enumerate(scales)]


def _packed_block(table: SourceTable, name: str, shape: tuple[int, ...]) -> Block:
    num_outputs, num_inputs = shape
    codes_each = CODES_PER_ELEMENT[_PACKED]
    packed = table.take(f"{name}.weight_packed", (num_outputs, -(-num_inputs // codes_each)), (_PACKED,))
    scale = table.find(f"{name}.weight_scale")
    groups = scale.num_columns
    if num_inputs % codes_each or num_inputs % groups:
        raise BadCheckpoint(
            f"{packed.file}: {name}: expected {num_inputs} inputs to be whole groups and whole numbers of 32 bits, "
            f"found {groups} groups and {codes_each} inputs to a number: use another release of the model"
        )
    table.pass_over(f"{name}.weight_shape")
    scales = whole(table.take(f"{name}.weight_scale", (num_outputs, groups)))
    return Block(packed, 0, num_outputs, scales=scales)


def _fused_scales(table: SourceTable, name: str, count: int, num_outputs: int) -> list[Block]:
    """Return each expert's scales as a row: they lie as rows, or as columns."""
    scale = table.find(f"{name}_scale")
    if scale.shape == (count, 1, num_outputs):
        found: StoredTensor = table.take(f"{name}_scale", scale.shape)
        return [Block(found, expert, 1) for expert in range(count)]
    found = table.take(f"{name}_scale", (count, num_outputs, 1))
    return [Block(found, expert * num_outputs, num_outputs, is_transposed=True) for expert in range(count)]
