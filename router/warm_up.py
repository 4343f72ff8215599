"""Prompts of nobody, computed before the first of somebody: kernels for a GPU are compiled when they are launched."""

from __future__ import annotations

import logging
import time

from router.batch import Batch, Span
from router.forward import Forward
from router.kv_cache.layout import CacheLayout
from router.kv_cache.storage import KvStorage
from router.paging.paged_kv import PagedKv

_LOG = logging.getLogger(__name__)
_LENGTHS = (2, 24, 48, 100, 256, 512, 1024, 2048)
"""Tokens of prompts that kernels are cut differently for, in the router and at its experts."""


def warm_up(forward: Forward, kv: PagedKv, storage: KvStorage, layout: CacheLayout, most_tokens: int) -> None:
    """Compute prompts of several lengths and forget them.

    Args:
        forward: whose kernels are wanted.
        kv: books of the cache; as before after this.
        storage: the cache.
        layout: of it.
        most_tokens: of a step, and of a sequence.

    Raises:
        ServingError: as `Forward`.

    Cost: seconds for each kernel that no process of this machine has compiled yet.
    """
    began = time.monotonic()
    for length in _LENGTHS:
        if length > most_tokens:
            break
        ids = [0] * length
        pages = kv.admit(ids, expect_tokens=length, use_cached=False)
        try:
            if kv.can_grow(pages, length):
                kv.grow(pages, length)
                span = Span(pages, 0, ids)
                forward([Batch.of([span], layout, forward.decoder.device, forward.look(storage))], storage)
        finally:
            kv.release(pages)
    _LOG.info("computed prompts of up to %d tokens to warm up, in %.1f s", most_tokens, time.monotonic() - began)
