"""What one sequence holds of the cache."""

from __future__ import annotations

from dataclasses import dataclass, field

from router.paging.blocks import BlockChain
from router.paging.page_table import PageTable


@dataclass(eq=False, slots=True)
class SequencePages:
    """The pages of one sequence in both pools. Only `PagedKv` changes it.

        0 ........ num_cached ........ num_tokens ............ num_reserved
        [ from the cache ][ computed since ][ pages held, not written yet ]

    Compared by identity: two sequences are never the same one.
    """

    global_table: PageTable
    local_table: PageTable
    chain: BlockChain
    num_tokens: int = 0
    """Tokens whose keys and values are valid."""
    num_cached: int = 0
    """Of them, those taken from the cache on admission."""
    num_reserved: int = 0
    """Positions for which pages are held."""
    num_prompt: int = 0
    """Tokens known on admission: all of them will be computed."""
    expect_tokens: int = 0
    """How long the sequence will probably get: a hint, never a limit."""
    is_current: bool = True
    """Whether nothing of it was computed before the cache was cleared: else it publishes nothing."""
    announced: set[bytes] = field(default_factory=set)
    """Keys of the blocks this sequence will compute and others may wait for."""
