"""Attention over scattered slots against double precision: on a GPU, or in Triton's interpreter where there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from models.gpu.attention import attend, place
from models.gpu.attention_pages import Reader, choose_splits, list_pages
from models.llama4.norm import rms_norm
from models.llama4.rope import RotaryEmbedding
from tests.tiny import TINY

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GROUPS, PER_GROUP, SIZE, SLOTS = 2, 5, 32, 512


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16().to(DEVICE)


def scattered(num_slots: int, page: int, seed: int) -> np.ndarray:
    """As many pages as slots want, in any order."""
    pages = torch.randperm(SLOTS // page, generator=torch.Generator().manual_seed(seed))[: -(-num_slots // page)]
    return pages.to(torch.int32).numpy()


def slots_of(reader: Reader, page: int) -> list[int]:
    """The slots of all keys that the reader's last token sees."""
    slots = [page * int(first) + offset for first in reader.pages for offset in range(page)]
    return slots[: reader.first_sees + reader.num_tokens - 1]


def exact(
    q_THC: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, readers: list[Reader], page: int
) -> torch.Tensor:
    out_THC = torch.zeros_like(q_THC, dtype=torch.float64)
    for reader in readers:
        slots = slots_of(reader, page)
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
        readers.append(Reader(row, num_tokens, first_sees, scattered(first_sees + num_tokens - 1, page, seed=number)))
        row += num_tokens
    q_THC = random(row, GROUPS * PER_GROUP, SIZE, seed=1)
    keys, values = random(SLOTS, GROUPS, SIZE, seed=2), random(SLOTS, GROUPS, SIZE, seed=3)
    seen = {slot for reader in readers for slot in slots_of(reader, page)}
    others = [slot for slot in range(SLOTS) if slot not in seen]
    keys[others] = values[others] = float("nan")
    reading = replace(list_pages(readers, page, PER_GROUP, GROUPS, DEVICE), splits=splits)
    found_THC = attend(q_THC, keys, values, reading)
    expected_THC = exact(q_THC, keys, values, readers, page)
    assert (found_THC.double() - expected_THC).norm() < 1e-2 * expected_THC.norm()


def test_a_prompt_is_cut_into_tiles_of_queries_that_share_their_pages():
    prompt, lone = Reader(0, 30, 5, np.arange(3, dtype=np.int32)), Reader(30, 1, 9, np.array([7], dtype=np.int32))
    reading = list_pages([prompt, lone], 16, PER_GROUP, GROUPS, torch.device("cpu"))
    assert reading.tokens == 12
    assert reading.queries.tolist() == [[0, 12, 5, 0], [12, 12, 17, 0], [24, 6, 29, 0], [30, 1, 9, 3]]
    assert reading.pages.tolist() == [0, 1, 2, 7]


@pytest.mark.skipif(DEVICE.type == "cpu", reason="a CPU counts as one processor")
def test_few_tokens_over_many_keys_are_cut_for_the_whole_card():
    assert choose_splits(8, 100_000, DEVICE) * 8 >= torch.cuda.get_device_properties(DEVICE).multi_processor_count


def test_keys_are_not_cut_finer_than_into_tiles():
    assert choose_splits(1, 64, torch.device("cpu")) == choose_splits(1, 1, DEVICE) == 1


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("rotates", [True, False])
def test_queries_keys_and_values_are_placed_as_torch_would(interleaved, rotates):
    config = replace(TINY, head_size=SIZE, rope_interleaved=interleaved)
    num_tokens, heads = 3, GROUPS * PER_GROUP
    qkv_TC = random(num_tokens, (heads + 2 * GROUPS) * SIZE, seed=4)
    turns = RotaryEmbedding(config, DEVICE).turns(torch.tensor([5, 0, 9000], device=DEVICE)) if rotates else None
    temperature = None if rotates else torch.tensor([1.0, 1.25, 1.5], device=DEVICE).view(3, 1, 1)
    slots_T = torch.tensor([7, -1, 300], device=DEVICE)  # the second token is not kept
    kept_T = torch.tensor([0, 2], device=DEVICE)
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
    torch.testing.assert_close(keys[slots_T[kept_T]], expected_k[kept_T], rtol=2**-6, atol=2**-6)
    assert torch.equal(values[slots_T[kept_T]], expected_v[kept_T])
    untouched = torch.ones(SLOTS, dtype=torch.bool)
    untouched[slots_T[kept_T].cpu()] = False
    assert keys[untouched.to(DEVICE)].isnan().all()
    assert values[untouched.to(DEVICE)].isnan().all()
