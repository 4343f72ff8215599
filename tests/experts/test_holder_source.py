"""Experts from whichever replica holds them, asked for each."""

from __future__ import annotations

import pytest
import torch

from experts.holder_source import HolderSource
from experts.server import ExpertServer
from experts.weights import ExpertWeights
from models.checkpoint import open_checkpoint

HIDDEN_ND = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def holder(held):
    server = ExpertServer(held)
    server.start()
    yield server
    server.stop()


def load(folder, find, wanted):
    files = open_checkpoint(folder)
    source = HolderSource(find, files, torch.float32)
    return ExpertWeights.load(source, wanted, torch.float32), source, files


def same(one: ExpertWeights, other: ExpertWeights, expert: int) -> bool:
    return all(
        torch.equal(one.run(layer, HIDDEN_ND, [expert], [4]), other.run(layer, HIDDEN_ND, [expert], [4]))
        for layer in one.layers
    )


def test_experts_come_from_their_holder_and_no_file_is_read(tiny_folder, held, holder):
    copied, source, files = load(tiny_folder, lambda expert: holder.address, held.expert_ids)
    assert source.fetched_bytes > 0
    assert files.bytes_read == 0
    assert all(same(held, copied, expert) for expert in held.expert_ids)


def test_an_expert_that_is_held_later_comes_from_whoever_holds_it_then(tiny_folder, held, holder):
    first, second = held.expert_ids[:2]
    asked: list[int] = []

    def find(expert: int) -> str | None:
        asked.append(expert)
        return holder.address if expert == second else None

    copied, source, files = load(tiny_folder, find, [first])
    assert (source.fetched_bytes, asked) == (0, [first])
    read = files.bytes_read
    copied.hold([second])
    assert asked == [first, second]
    assert source.fetched_bytes > 0
    assert files.bytes_read == read
    assert same(held, copied, second)


def test_a_holder_that_is_gone_is_tried_once_and_files_are_read(tiny_folder, held):
    server = ExpertServer(held)
    server.start()
    address = server.address
    server.stop()
    copied, source, files = load(tiny_folder, lambda expert: address, held.expert_ids)
    assert source.fetched_bytes == 0
    assert files.bytes_read > 0
    assert all(same(held, copied, expert) for expert in held.expert_ids)
