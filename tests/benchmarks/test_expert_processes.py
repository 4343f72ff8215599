"""Expert processes that benchmarks start: reached, and gone afterwards."""

from __future__ import annotations

import os

import pytest

from benchmarks.expert_processes import open_experts
from benchmarks.peers.worker import descendants
from benchmarks.random_llama4 import RandomLlama4, write_random_llama4
from models.checkpoint import Checkpoint, open_checkpoint

SMALL = RandomLlama4(layers=1, hidden=32, heads=4, kv_heads=2, head_size=8, experts=4, expert_width=24, vocab=96)


@pytest.fixture
def checkpoint(tmp_path) -> Checkpoint:
    write_random_llama4(tmp_path / "model", SMALL)
    return open_checkpoint(tmp_path / "model")


def test_every_expert_is_reached_from_anywhere_and_the_processes_are_gone_after(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experts.py").write_text("raise SystemExit('not these')")
    with open_experts(checkpoint, [(0, 2), (1, 3)], dtype="float32", threads=1) as opened:
        held = [holder.expert_ids for holder in opened.transport.placement.holders]
        running = set(descendants(os.getpid()))
    assert held == [(0, 2), (1, 3)]
    assert len(opened.pids) == 2
    assert running >= set(opened.pids)
    assert not set(descendants(os.getpid())) & set(opened.pids)


def test_a_process_that_cannot_start_ends_the_others(checkpoint):
    before = set(descendants(os.getpid()))
    with (
        pytest.raises(RuntimeError, match="ended before it was ready"),
        open_experts(checkpoint, [(0, 1, 2, 3), (9,)], dtype="float32", threads=1),
    ):
        pass
    assert set(descendants(os.getpid())) <= before
