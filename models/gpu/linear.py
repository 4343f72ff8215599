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
        tiles = self._table(num_tokens, launch.tokens)
        return grouped_product(x_TI.contiguous(), tiles, self.weight.form, self.weight.num_outputs, launch)

    def _table(self, num_tokens: int, most_tokens: int) -> Tensor:
        """Return the table of tiles, made once for every number of tokens."""
        table = self._tables.get((num_tokens, most_tokens))
        if self.weight.values.is_cuda and torch.cuda.is_current_stream_capturing():
            # What is made now is there when the graph runs, not before: others must not find it.
            return tile_table([self.weight], [num_tokens], most_tokens) if table is None else table
        if table is None:
            if len(self._tables) >= _MOST_TABLES:
                self._tables.clear()
            table = self._tables[num_tokens, most_tokens] = tile_table([self.weight], [num_tokens], most_tokens)
        return table
