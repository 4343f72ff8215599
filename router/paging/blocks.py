"""Keys of full pages: each names its own tokens and, through its parent's key, all tokens before them."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from hashlib import blake2b

_KEY_BYTES = 16


def block_keys(ids: Sequence[int], page_tokens: int, parent: bytes = b"") -> list[bytes]:
    """Return the key of each full page of `ids`: blake2b-128 of the parent's key and the ids, 4 bytes each.

    Args:
        ids: token ids in [0, 2**32); what does not fill a page is left out.
        page_tokens: tokens per page.
        parent: key of the page before, empty at the beginning.
    """
    num_blocks = len(ids) // page_tokens
    numbers = array("I", ids[: num_blocks * page_tokens])
    if sys.byteorder == "big":
        numbers.byteswap()
    data = numbers.tobytes()
    size = page_tokens * numbers.itemsize
    keys = []
    for start in range(0, num_blocks * size, size):
        parent = blake2b(parent + data[start : start + size], digest_size=_KEY_BYTES).digest()
        keys.append(parent)
    return keys


class BlockChain:
    """The keys of a sequence's full pages, extended as the sequence grows.

    Args:
        page_tokens: tokens per page.
        ids: the sequence so far.
    """

    def __init__(self, page_tokens: int, ids: Sequence[int] = ()) -> None:
        self.page_tokens = page_tokens
        self.keys: list[bytes] = []
        self.extend(ids, len(ids))

    def extend(self, ids: Sequence[int], num_tokens: int) -> None:
        """Add the keys of the pages of ids[:num_tokens] that became full."""
        done = len(self.keys) * self.page_tokens
        if num_tokens - done >= self.page_tokens:
            parent = self.keys[-1] if self.keys else b""
            self.keys += block_keys(ids[done:num_tokens], self.page_tokens, parent)

    def copy(self, num_blocks: int) -> BlockChain:
        """Return a chain of the first `num_blocks` blocks that grows on its own."""
        chain = BlockChain(self.page_tokens)
        chain.keys = self.keys[:num_blocks]
        return chain
