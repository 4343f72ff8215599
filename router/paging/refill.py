"""Pages that get back content which was computed before and left the cache: from where, and until when who holds them.

missing --PagedKv.refill--> held, nobody finds them --content written--> PagedKv.finish_refill --> kept, published
"""

from __future__ import annotations

from dataclasses import dataclass

Block = tuple[bool, bytes]
"""(is of local layers, key): names the content of one page."""


@dataclass(frozen=True, slots=True)
class Gap:
    """What lies between the prefix a prompt could share now and the longest one it could share after a refill."""

    keys: tuple[bytes, ...]
    """Of the blocks of the longer prefix."""
    num_found: int
    """Blocks of the shorter one."""
    missing: tuple[Block, ...]
    """What the cache lacks of the longer one: global pages, then local ones, ascending."""

    @property
    def num_blocks(self) -> int:
        """Return the blocks whose tokens need not be computed after the refill."""
        return len(self.keys) - self.num_found


@dataclass(eq=False, slots=True)
class Refill:
    """A refill under way. Only `PagedKv` changes it."""

    pages: dict[Block, int]
    """The page each missing block's content is to be written to."""
    announced: tuple[bytes, ...]
    """Keys of the blocks that will be found, for others to wait for."""
    held: tuple[list[int], list[int]]
    """(global, local) pages held until the end, those the cache had included, in the order of their blocks."""
    is_current: bool = True
    """Whether the cache was not cleared since: else nothing of it is published."""
