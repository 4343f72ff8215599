"""Attention layers in one call each, beside torch's operators: both against float32."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle

import pytest
import torch
from torch import Tensor

from models.config import ModelConfig
from models.cpu.attention import AttentionStep
from models.llama4.decoder import Decoder, load_decoder
from router.batch import Batch, Span, split
from router.forward import Forward
from router.kv_cache.codec import dtype_name
from router.kv_cache.layout import CacheLayout
from router.kv_cache.storage import KvStorage
from router.paging.blocks import BlockChain
from router.paging.page_table import PageTable
from router.paging.paged_kv import PagingPlan
from router.paging.sequence_pages import SequencePages
from router.reading import list_readers
from router.seen import look_up
from router.transport.local import LocalTransport
from tests.tiny import TINY, TinyWeights

pytestmark = pytest.mark.usefixtures("kernels")

CPU = torch.device("cpu")
ODD = 95
"""A token that appears only where it is asked for."""
BY_KERNEL, BY_TORCH, IN_TURN = (True,), (False,), (True, False)
"""Which way steps are computed, over and over."""

# A dense layer, a MoE layer, and one that sees everything. All experts are visited: a route that rounding changes would
# hide what is tested.
MODEL = replace(
    TINY,
    num_layers=3,
    hidden_size=128,
    head_size=64,
    expert_width=64,
    dense_width=128,
    moe_layers=(1, 2),
    nope_layers=(2,),
    attention_chunk=96,
    experts_per_token=4,
)
LIKE_LLAMA_3 = {"nope_layers": (), "attention_chunk": None, "rope_interleaved": False, "qk_norm": False}
NO_EXPERTS = {"moe_layers": (), "num_experts": 0, "experts_per_token": 0}
VARIATIONS = {
    "half-split": {"rope_interleaved": False},
    "no qk norm": {"qk_norm": False},
    "no temperature": {"attn_temperature": False},
    "all local": {"nope_layers": ()},
    "all nope": {"nope_layers": (0, 1, 2)},
    "small chunks": {"attention_chunk": 8},
    "llama 3": LIKE_LLAMA_3 | NO_EXPERTS | {"attn_temperature": False},
    "one expert": {"experts_per_token": 1},
    "two experts": {"experts_per_token": 2},
    "a group per head": {"num_kv_heads": 4},
    "one group": {"num_heads": 1, "num_kv_heads": 1},
    "five heads in a group": {"num_heads": 5, "num_kv_heads": 1},
    "48 heads in a group": {"num_heads": 48, "num_kv_heads": 1},
    "heads of 128": {"head_size": 128},
    "heads of 192": {"head_size": 192, "num_heads": 3, "num_kv_heads": 3},
    "heads of 256": {"head_size": 256, "num_heads": 6},
}

# Tokens of each of three sequences in each step.
STEPS = {
    "prompts at once": [(250, 70, 9)],
    "lone tokens": [(60, 94, 1), *[(1, 1, 1)] * 8],
    "pieces beside lone tokens": [(40, 5, 90), (1, 30, 1), (120, 1, 0), (1, 1, 20), (0, 100, 1)],
}


class RoundedWeights(TinyWeights):
    """Weights of bfloat16 in any dtype; where only some experts are visited all are alike."""

    def _make(self, name, dtype):
        return super()._make(name, torch.bfloat16).to(dtype)

    def put(self, name, tensor):
        """Let a tensor be this one."""
        self._made[name, tensor.dtype] = tensor

    def run_experts(self, layer, hidden_ND, expert_ids, counts):
        if self.config.experts_per_token < self.config.num_experts:
            expert_ids, counts = [0], [sum(counts)]
        return super().run_experts(layer, hidden_ND, expert_ids, counts)


def random_pages(lengths: list[int], page_tokens: int) -> tuple[list[SequencePages], int]:
    """Return sequences whose pages lie in no order, and how many pages there are."""
    wanted = [-(-length // page_tokens) for length in lengths]
    order = torch.randperm(sum(wanted), generator=torch.Generator().manual_seed(0)).tolist()
    sequences = []
    for count in wanted:
        tables = PageTable(page_tokens), PageTable(page_tokens)
        tables[0].append(order[:count])
        tables[1].append(reversed(order[:count]))
        sequences.append(SequencePages(*tables, BlockChain(page_tokens)))
        del order[:count]
    return sequences, sum(wanted)


def empty_storage(layout: CacheLayout, num_pages: int, dtype: torch.dtype) -> KvStorage:
    """Return a cache in which whatever nobody wrote breaks who reads it."""
    plan = PagingPlan(layout.page_tokens, layout.chunk, bool(layout.global_layers), num_pages, num_pages)
    storage = KvStorage(layout, plan, dtype, CPU)
    for is_local in (False, True):
        for part in storage.parts(is_local):
            part.fill_(torch.nan)
    return storage


def run(
    decoder: Decoder,
    weights: TinyWeights,
    ways: tuple[bool, ...],
    steps: list[tuple[int, ...]],
    *,
    page_tokens: int = 4,
    num_batches: int = 1,
    odd_at: int | None = None,
) -> Tensor:
    """Return the logits of all tokens, step after step; the first sequence may have the odd one."""
    layout = CacheLayout(decoder.config, dtype_name(decoder.dtype), page_tokens)
    lengths = [sum(counts) for counts in zip(*steps, strict=True)]
    sequences, num_pages = random_pages(lengths, layout.page_tokens)
    storage = empty_storage(layout, num_pages, decoder.dtype)
    ids = torch.randint(3, ODD, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1)).tolist()
    if odd_at is not None:
        ids[0][odd_at] = ODD
    forward = Forward(decoder, LocalTransport(weights.run_experts))
    starts, parts = [0] * len(lengths), []
    for counts, by_kernel in zip(steps, cycle(ways), strict=False):
        spans = [
            Span(pages, start, row[start : start + count], num_logits=count)
            for pages, start, row, count in zip(sequences, starts, ids, counts, strict=True)
            if count
        ]
        look = list_readers if by_kernel else look_up
        batches = [Batch.of(part, layout, CPU, look) for part in split(spans, num_batches)]
        parts.append(forward(batches, storage))
        starts = [start + count for start, count in zip(starts, counts, strict=True)]
    return torch.cat(parts)


def errors(config: ModelConfig, ways: tuple[bool, ...], steps, quantize=None, **how) -> tuple[Tensor, Tensor]:
    """Return each token's mean error of the logits some way, and with torch's operators, beside float32."""
    weights = RoundedWeights(config)
    decoder = load_decoder(weights, dtype=torch.bfloat16, quantize=quantize)
    assert decoder.kernel is not None
    exact = run(load_decoder(weights, dtype=torch.float32), weights, BY_TORCH, steps, **how)
    found = (run(decoder, weights, each, steps, **how) for each in (ways, BY_TORCH))
    return tuple((logits - exact).abs().mean(dim=1) for logits in found)


def assert_as_near(error_T: Tensor, usual_T: Tensor) -> None:
    """Logits spread by 1.5: a key too many or too few moves a token's by a tenth of that at least."""
    assert error_T.mean() <= 1.5 * usual_T.mean()
    assert error_T.max() <= 2 * usual_T.max()


@pytest.mark.parametrize("page_tokens", [4, 96])
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_logits_are_as_near_as_those_of_torchs_operators(steps, page_tokens):
    """Pages of 4 make tiles of 4 keys, and pages of 96 one of 64 and one of 32 each."""
    assert_as_near(*errors(MODEL, BY_KERNEL, steps, page_tokens=page_tokens))


@pytest.mark.parametrize("changes", VARIATIONS.values(), ids=VARIATIONS)
def test_logits_are_as_near_for_every_kind_of_model(changes):
    assert_as_near(*errors(replace(MODEL, **changes), BY_KERNEL, STEPS["pieces beside lone tokens"]))


@pytest.mark.usefixtures("int8_kernels")
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_logits_are_as_near_in_int8(steps):
    assert_as_near(*errors(MODEL, BY_KERNEL, steps, quantize="int8"))


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_batches_in_turn_may_continue_each_others_sequences(steps):
    assert_as_near(*errors(MODEL, BY_KERNEL, steps, num_batches=3))


def test_either_way_continues_what_the_other_began():
    assert_as_near(*errors(MODEL, IN_TURN, STEPS["pieces beside lone tokens"]))


def test_the_bits_of_a_sequence_do_not_depend_on_what_another_says():
    weights = RoundedWeights(replace(MODEL, **NO_EXPERTS))
    decoder = load_decoder(weights, dtype=torch.bfloat16)
    logits, others = (run(decoder, weights, BY_KERNEL, [(64, 64)], odd_at=place) for place in (None, 30))
    assert torch.equal(logits[:30], others[:30])
    assert not torch.equal(logits[30:64], others[30:64])
    assert torch.equal(logits[64:], others[64:])


def attend_once(config: ModelConfig, weights: TinyWeights, num_tokens: int = 60) -> tuple[AttentionStep, Tensor]:
    """Return a prompt's first step of a model whose first layer has experts, and that layer's normalised output."""
    decoder = load_decoder(weights, dtype=torch.bfloat16)
    layout = CacheLayout(config, "bfloat16", 4)
    (pages,), num_pages = random_pages([num_tokens], layout.page_tokens)
    batch = Batch.of([Span(pages, 0, range(3, 3 + num_tokens))], layout, CPU, list_readers)
    tables = decoder.attention.tables(batch.positions_T)
    storage = empty_storage(layout, num_pages, decoder.dtype)
    assert decoder.kernel is not None
    assert storage.plain is not None
    hidden_TD = decoder.embed(batch.ids_T)
    step = AttentionStep(decoder.kernel, hidden_TD, tables.turns, tables.temperature_T, batch.readings, storage.plain)
    return step, step.attend(0)


@pytest.mark.parametrize("num_chosen", [1, 2, 3, 8])
def test_ties_between_experts_go_to_the_lower_index(num_chosen):
    """Of eight experts' gates only three differ; tokens that these nearly tie are left out: rounding decides them."""
    kind_E = torch.tensor([1, 0, 1, 2, 0, 2, 2, 0])
    config = replace(MODEL, moe_layers=(0,), num_experts=8, experts_per_token=num_chosen)
    weights = RoundedWeights(config)
    gate_3D = weights.read("layers.0.gate", torch.bfloat16)[:3]
    weights.put("layers.0.gate", gate_3D[kind_E])
    step, normed_TD = attend_once(config, weights)
    logits_T3 = normed_TD.double() @ gate_3D.double().t()
    is_clear_T = logits_T3.sort(dim=1).values.diff(dim=1).amin(dim=1) > 0.1
    ordered_TE, expected_TE = logits_T3[:, kind_E].sort(dim=1, descending=True, stable=True)
    assert is_clear_T.sum() > 30
    assert torch.equal(step.expert_ids_TK[is_clear_T], expected_TE[is_clear_T, :num_chosen])
    scores_TK = torch.sigmoid(ordered_TE[:, :num_chosen])
    torch.testing.assert_close(step.scores_TK[is_clear_T].double(), scores_TK[is_clear_T], atol=0, rtol=0.02)


def test_a_broken_token_shows_in_those_that_see_it_and_in_no_other_sequence():
    weights = RoundedWeights(MODEL)
    embed_VD = weights.read("embed", torch.bfloat16).clone()
    embed_VD[ODD, 7] = torch.nan
    weights.put("embed", embed_VD)
    decoder = load_decoder(weights, dtype=torch.bfloat16)
    is_finite_T = run(decoder, weights, BY_KERNEL, [(64, 64)], odd_at=30).isfinite().all(dim=1)
    assert not is_finite_T[30:64].any()
    assert is_finite_T[64:].all()


def test_a_broken_gate_shows():
    weights = RoundedWeights(replace(MODEL, experts_per_token=1))
    gate_ED = weights.read("layers.1.gate", torch.bfloat16).clone()
    gate_ED[2, 5] = torch.nan
    weights.put("layers.1.gate", gate_ED)
    decoder = load_decoder(weights, dtype=torch.bfloat16)
    assert not run(decoder, weights, BY_KERNEL, STEPS["lone tokens"]).isfinite().any()


@pytest.mark.parametrize("layer", [0, 2], ids=["rotary", "nope"])
@pytest.mark.parametrize("matrix", "qkvo")
def test_a_broken_weight_shows(matrix, layer):
    weights = RoundedWeights(MODEL)
    weight_OI = weights.read(f"layers.{layer}.attn.{matrix}", torch.bfloat16).clone()
    weight_OI[5, 7] = torch.nan
    weights.put(f"layers.{layer}.attn.{matrix}", weight_OI)
    decoder = load_decoder(weights, dtype=torch.bfloat16)
    assert not run(decoder, weights, BY_KERNEL, STEPS["lone tokens"]).isfinite().any()


@pytest.mark.parametrize(
    "changes",
    [
        {"head_size": 32},
        {"head_size": 320},
        {"num_heads": 49, "num_kv_heads": 1},
        {"num_experts": 6, "experts_per_token": 6},
        {"hidden_size": 80},
    ],
    ids=str,
)
def test_other_models_run_on_torchs_operators(changes):
    weights = RoundedWeights(replace(MODEL, **changes))
    decoder = load_decoder(weights, dtype=torch.bfloat16)
    assert decoder.kernel is None
    assert run(decoder, weights, BY_TORCH, STEPS["lone tokens"]).isfinite().all()
