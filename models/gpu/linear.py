"""A weight that stays on a GPU, multiplied by Triton's kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from models.gpu.tiles import tile_table
from models.gpu.weight import GpuWeight

# Tables of numbers of tokens that come again and again: those of decode steps.
_MOST_TABLES = 512


class GpuLinear:
    """A weight in any form of `GpuWeight`, as a Linear.

    Args:
        weight: kept.
    """

    def __init__(self, weight: GpuWeight) -> None:
        self.weight = weight
        self._tables: dict[tuple[int, int], Tensor] = {}
        self._recorded: list[Tensor] = []

    @property
    def num_bytes(self) -> int:
        """Bytes of the weight in memory, as it is held."""
        return self.weight.num_bytes

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Return x · weightᵀ, [T, O] in the dtype of x."""
        # Here, because importing Triton takes time and memory of processes that compute on a CPU.
        from models.gpu.launches import down_launch
        from models.gpu.product import grouped_product

        num_tokens = x_TI.shape[0]
        assert x_TI.device == self.weight.values.device
        assert x_TI.shape[1] == self.weight.num_inputs
        if not num_tokens:
            return x_TI.new_empty(0, self.weight.num_outputs)
        launch = down_launch(self.weight.form, num_tokens)
        tiles = self.tiles(num_tokens, launch.tokens)
        return grouped_product(x_TI.contiguous(), tiles, self.weight.form, self.weight.num_outputs, launch)

    def tiles(self, num_tokens: int, most_tokens: int) -> Tensor:
        """Return the table of tiles of at most so many tokens (`tiles`), made once for every number of tokens."""
        table = self._tables.get((num_tokens, most_tokens))
        if self.weight.values.is_cuda and torch.cuda.is_current_stream_capturing():
            assert table is not None, "a step runs once before it is recorded"
            self._recorded.append(table)  # the graph reads it as long as there is one
        if table is None:
            if len(self._tables) >= _MOST_TABLES:
                self._tables.clear()
            table = self._tables[num_tokens, most_tokens] = tile_table([self.weight], [num_tokens], most_tokens)
        return table


def swiglu_of(gate_up: GpuLinear, down: GpuLinear, x_TD: Tensor) -> Tensor:
    """Return down(silu(gate(x)) * up(x)), [T, D] in the dtype of x, in two launches.

    Args:
        gate_up: [2F, D], the gate's F rows first.
        down: [D, F].
        x_TD: [T, D]; bfloat16 for weights in four bits.
    """
    from models.gpu.launches import down_launch, gate_up_launch
    from models.gpu.swiglu import Block, SwigluPlan, swiglu

    num_tokens = x_TD.shape[0]
    if not num_tokens:
        return torch.empty_like(x_TD)
    first, second = gate_up_launch(gate_up.weight.form, num_tokens), down_launch(down.weight.form, num_tokens)
    first_tiles, second_tiles = gate_up.tiles(num_tokens, first.tokens), down.tiles(num_tokens, second.tokens)
    plan = SwigluPlan(Block(gate_up.weight, down.weight), first_tiles, second_tiles, first, second)
    return swiglu(x_TD.contiguous(), plan)
