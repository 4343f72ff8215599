"""What is computed before the first request leaves the cache as it was."""

from __future__ import annotations

from router.forward import Forward
from router.kv_cache.layout import CacheLayout
from router.kv_cache.storage import KvStorage
from router.paging.paged_kv import PagedKv
from router.transport.local import LocalTransport
from router.warm_up import warm_up
from tests.tiny import tiny_decoder


def test_prompts_of_several_lengths_are_computed_and_forgotten():
    decoder, weights = tiny_decoder()
    lengths = []

    def run_experts(layer, hidden_ND, expert_ids, counts):
        if layer == 0:
            lengths.append(sum(counts))
        return weights.run_experts(layer, hidden_ND, expert_ids, counts)

    layout = CacheLayout(decoder.config, "float32", 4)
    plan = layout.plan(1 << 20, slots=8)
    kv, storage = PagedKv(plan), KvStorage(layout, plan, decoder.dtype, decoder.device)
    warm_up(Forward(decoder, LocalTransport(run_experts)), kv, storage, layout, most_tokens=60)
    assert lengths == [2, 24, 48]
    assert kv.num_used_pages() == (0, 0)
    assert kv.num_sequences == 0
    assert kv.num_kept_pages() == (0, 0)


def test_prompts_that_the_cache_has_no_pages_for_are_passed_over():
    decoder, weights = tiny_decoder()
    layout = CacheLayout(decoder.config, "float32", 4)
    plan = layout.plan(layout.sequence_bytes(8), slots=1)
    kv, storage = PagedKv(plan), KvStorage(layout, plan, decoder.dtype, decoder.device)
    warm_up(Forward(decoder, LocalTransport(weights.run_experts)), kv, storage, layout, most_tokens=60)
    assert kv.num_used_pages() == (0, 0)
