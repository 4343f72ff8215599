"""Attention over scattered slots against double precision: on a GPU, or in Triton's interpreter where there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from models.gpu.attention import attend, place
from models.gpu.attention_tiles import Reader, cut
from models.llama4.norm import rms_norm
from models.llama4.rope import RotaryEmbedding
from tests.tiny import TINY

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GROUPS, PER_GROUP, SIZE, SLOTS = 2, 5, 32, 512


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16().to(DEVICE)


def scattered(num_slots: int, page: int, seed: int) -> list[tuple[int, int]]:
    """Runs of a page each, in any order, the last one not full."""
    pages = torch.randperm(SLOTS // page, generator=torch.Generator().manual_seed(seed)).tolist()
    counts = [page] * (num_slots // page) + ([num_slots % page] if num_slots % page else [])
    return [(page * first, count) for first, count in zip(pages, counts, strict=False)]


def exact(q_THC: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, readers: list[Reader]) -> torch.Tensor:
    out_THC = torch.zeros_like(q_THC, dtype=torch.float64)
    for reader in readers:
        slots = [slot for first, count in reader.runs for slot in range(first, first + count)]
        for token in range(reader.num_tokens):
            seen = slots[: reader.first_sees + token]
            k, v = (part[seen].double().repeat_interleave(PER_GROUP, 1) for part in (keys, values))
            scores = torch.einsum("hc,shc->hs", q_THC[reader.row + token].double(), k) * SIZE**-0.5
            out_THC[reader.row + token] = torch.einsum("hs,shc->hc", scores.softmax(1), v)
    return out_THC


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(
    ("shapes", "page"),
    [
        ([(1, 1)], 16),
        ([(1, 200), (1, 3), (1, 64)], 16),
        ([(20, 1)], 128),
        ([(17, 90), (1, 70), (3, 5)], 32),
    ],
)
def test_every_token_attends_to_what_it_sees_and_nothing_else(shapes, page, splits):
    readers, row = [], 0
    for number, (num_tokens, first_sees) in enumerate(shapes):
        runs = scattered(first_sees + num_tokens - 1, page, seed=number)
        readers.append(Reader(row, num_tokens, first_sees, runs))
        row += num_tokens
    q_THC = random(row, GROUPS * PER_GROUP, SIZE, seed=1)
    keys, values = random(SLOTS, GROUPS, SIZE, seed=2), random(SLOTS, GROUPS, SIZE, seed=3)
    seen = {slot for reader in readers for first, count in reader.runs for slot in range(first, first + count)}
    others = [slot for slot in range(SLOTS) if slot not in seen]
    keys[others] = values[others] = float("nan")
    tiles = replace(cut(readers, PER_GROUP, GROUPS, DEVICE), splits=splits)
    found_THC = attend(q_THC, keys, values, tiles)
    expected_THC = exact(q_THC, keys, values, readers)
    assert (found_THC.double() - expected_THC).norm() < 1e-2 * expected_THC.norm()


def test_few_tokens_over_many_keys_are_cut_for_the_whole_card():
    reader = Reader(0, 1, 100_000, [(0, 100_000)])
    tiles = cut([reader], PER_GROUP, GROUPS, torch.device("cpu"))
    assert tiles.queries.tolist() == [[0, 1, 100_000, 0, 1563]]
    assert tiles.keys[-1].tolist() == [99_968, 32, 99_968]
    assert tiles.splits == 1  # one processor


def test_a_prompt_reads_no_tile_that_none_of_its_tokens_sees():
    tiles = cut([Reader(0, 100, 1, [(0, 100)])], PER_GROUP, GROUPS, torch.device("cpu"))
    assert tiles.tokens == 12
    # The keys' tiles begin at 0 and 64: queries up to token 59 see the first only, 60 to 71 both.
    assert tiles.queries[:, 4].tolist() == [1] * 5 + [2] * 4


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("rotates", [True, False])
def test_queries_keys_and_values_are_placed_as_torch_would(interleaved, rotates):
    config = replace(TINY, head_size=SIZE, rope_interleaved=interleaved)
    num_tokens, heads = 3, GROUPS * PER_GROUP
    qkv_TC = random(num_tokens, (heads + 2 * GROUPS) * SIZE, seed=4)
    turns = RotaryEmbedding(config, DEVICE).turns(torch.tensor([5, 0, 9000], device=DEVICE)) if rotates else None
    temperature = None if rotates else torch.tensor([1.0, 1.25, 1.5], device=DEVICE).view(3, 1, 1)
    slots_T = torch.tensor([7, 2, 300], device=DEVICE)
    keys, values = torch.full((2, SLOTS, GROUPS, SIZE), float("nan"), dtype=torch.bfloat16, device=DEVICE).unbind(0)
    q_THC = place(
        qkv_TC, turns, temperature, slots_T, keys, values, interleaved=interleaved, norm_eps=1e-5 if rotates else None
    )
    qk_THC, expected_v = qkv_TC.view(num_tokens, -1, SIZE).split((heads + GROUPS, GROUPS), dim=1)
    if turns is not None:
        qk_THC = rms_norm(RotaryEmbedding(config, DEVICE).rotate(qk_THC, turns), None, 1e-5)
    expected_q, expected_k = qk_THC.split((heads, GROUPS), dim=1)
    if temperature is not None:
        expected_q = (expected_q * temperature).bfloat16()
    torch.testing.assert_close(q_THC, expected_q, rtol=2**-6, atol=2**-6)
    torch.testing.assert_close(keys[slots_T], expected_k, rtol=2**-6, atol=2**-6)
    assert torch.equal(values[slots_T], expected_v)
    untouched = torch.ones(SLOTS, dtype=torch.bool)
    untouched[slots_T.cpu()] = False
    assert keys[untouched.to(DEVICE)].isnan().all()
    assert values[untouched.to(DEVICE)].isnan().all()
