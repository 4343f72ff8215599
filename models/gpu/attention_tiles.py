"""How a step's attention over the paged cache is cut for a GPU: tiles of queries, and tiles of the slots they see."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import ModelConfig

KEYS = 64
"""Of a tile."""
_ROWS = 64
"""Most queries of a program."""
_LEAST_HEAD, _MOST_HEAD = 16, 128
"""What tensor cores multiply at least, and what registers have room for."""
_WAVES = 2
"""Programs for each of the card's processors that a step is cut into at least, if it has so many tiles of keys."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Consecutive tokens of one sequence, and the slots of the positions that the last of them sees."""

    row: int
    """Of the first token in the step."""
    num_tokens: int
    first_sees: int
    """Keys that the first token sees, itself included; each next one sees one more."""
    runs: Sequence[tuple[int, int]]
    """(first slot, slots), in the order of positions."""


@dataclass(frozen=True, slots=True)
class AttentionTiles:
    """How a step's attention in the layers of one kind is cut."""

    queries: Tensor
    """[Q, 5] int32: first row, tokens, keys that the first sees, first tile of keys, tiles of keys."""
    keys: Tensor
    """[N, 3] int32: first slot, slots, position of the first among the keys seen."""
    tokens: int
    """Of a tile of queries at most."""
    splits: int
    """Parts that each tile's keys are cut into."""


def is_supported(config: ModelConfig) -> bool:
    """Tell whether the kernels know heads of such a size and number."""
    per_group, size = config.num_heads // config.num_kv_heads, config.head_size
    return per_group <= _ROWS and _LEAST_HEAD <= size <= _MOST_HEAD and size & (size - 1) == 0


def cut(readers: Sequence[Reader], per_group: int, num_groups: int, device: torch.device) -> AttentionTiles:
    """Return the tables for a step.

    Args:
        readers: all of the step.
        per_group: heads that share keys and values.
        num_groups: of such heads.
        device: where the tables are wanted.
    """
    tokens = max(1, _ROWS // per_group) if any(reader.num_tokens > 1 for reader in readers) else 1
    queries: list[tuple[int, int, int, int, int]] = []
    keys: list[tuple[int, int, int]] = []
    most_tiles = 1
    for reader in readers:
        first_tile, tiles = len(keys), _key_tiles(reader.runs)
        keys += tiles
        for first in range(0, reader.num_tokens, tokens):
            count = min(tokens, reader.num_tokens - first)
            last_sees = reader.first_sees + first + count - 1
            num_tiles = bisect_left(tiles, last_sees, key=lambda tile: tile[2])
            queries.append((reader.row + first, count, reader.first_sees + first, first_tile, num_tiles))
            most_tiles = max(most_tiles, num_tiles)
    programs = len(queries) * num_groups
    splits = max(1, min(most_tiles, -(-_WAVES * _num_processors(device) // programs)))
    query_tiles, key_tiles = (torch.tensor(table, dtype=torch.int32).to(device) for table in (queries, keys))
    return AttentionTiles(query_tiles, key_tiles, tokens, splits)


def _key_tiles(runs: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    tiles, position = [], 0
    for first, count in runs:
        for start in range(0, count, KEYS):
            taken = min(KEYS, count - start)
            tiles.append((first + start, taken, position))
            position += taken
    return tiles


def _num_processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
