"""What a step's attention reads of the paged cache, as a GPU takes it: tiles of queries, and lists of pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
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
_MOST_SPLITS = 64
"""Parts of the keys: more would cost more to join than they gain."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Consecutive tokens of one sequence, and the pages of the positions that the last of them sees."""

    row: int
    """Of the first token in the step."""
    num_tokens: int
    first_sees: int
    """Keys that the first token sees, itself included; each next one sees one more."""
    pages: np.ndarray
    """[pages] int32, in the order of positions; the first key seen is the first of its page."""


@dataclass(frozen=True, slots=True)
class AttentionPages:
    """Who reads what in the layers of one kind."""

    queries: Tensor
    """[Q, 4] int32: first row, tokens, keys that the first one sees, where its pages begin in `pages`. A tile of no
    tokens is passed over."""
    pages: Tensor
    """[P] int32: page numbers, reader after reader."""
    page_tokens: int
    """Slots of a page."""
    tokens: int
    """Of a tile of queries at most."""
    splits: int
    """Parts that each tile's keys are cut into."""


def is_supported(config: ModelConfig) -> bool:
    """Tell whether the kernels know heads of such a size and number."""
    per_group, size = config.num_heads // config.num_kv_heads, config.head_size
    return per_group <= _ROWS and _LEAST_HEAD <= size <= _MOST_HEAD and size & (size - 1) == 0


def list_pages(
    readers: Sequence[Reader], page_tokens: int, per_group: int, num_groups: int, device: torch.device
) -> AttentionPages:
    """Return the tables for a step.

    Args:
        readers: all of the step.
        page_tokens: slots of a page.
        per_group: heads that share keys and values.
        num_groups: of such heads.
        device: where the tables are wanted.
    """
    tokens = max(1, _ROWS // per_group) if any(reader.num_tokens > 1 for reader in readers) else 1
    queries: list[tuple[int, int, int, int]] = []
    first_page = most_keys = 0
    for reader in readers:
        for first in range(0, reader.num_tokens, tokens):
            count = min(tokens, reader.num_tokens - first)
            queries.append((reader.row + first, count, reader.first_sees + first, first_page))
        first_page += len(reader.pages)
        most_keys = max(most_keys, reader.first_sees + reader.num_tokens - 1)
    splits = choose_splits(len(queries) * num_groups, most_keys, device)
    pages = torch.from_numpy(np.concatenate([reader.pages for reader in readers])).to(device)
    return AttentionPages(torch.tensor(queries, dtype=torch.int32).to(device), pages, page_tokens, tokens, splits)


def choose_splits(num_programs: int, most_keys: int, device: torch.device) -> int:
    """Return into how many parts to cut keys, so that all of a card has something to read.

    Args:
        num_programs: without parts.
        most_keys: that one of them reads.
        device: whose processors there are.
    """
    wanted = -(-_WAVES * _num_processors(device) // num_programs)
    return max(1, min(-(-most_keys // KEYS), wanted, _MOST_SPLITS))


def _num_processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
