"""Weights that are stored in four bits stay so: the same codes, a quarter of the memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experts.weights import ExpertWeights
from models.checkpoint import as_stored, kept_names, open_checkpoint
from models.linear import Int4Weight
from models.llama4.decoder import load_decoder
from router.forward import Forward
from router.transport.local import LocalTransport
from tests.models.checkpoint_files import as_int4, hf_tensors, with_separate_experts, write_hf
from tests.parity.splits import run_in_splits

WIDTH = 64


def write_w4a16(folder: Path, *, group: int = 32, left_out: str = "") -> Path:
    """Write a model whose routed and shared experts are int4, but for those whose name has `left_out` in it."""
    tensors = with_separate_experts(hf_tensors(expert_width=WIDTH))
    for name in sorted(tensors):
        is_expert = ".experts." in name or ".shared_expert." in name
        if is_expert and not (left_out and left_out in name):
            tensors = as_int4(tensors, name.removesuffix(".weight"), group)
    return write_hf(folder, tensors, intermediate_size=WIDTH)


def test_codes_are_read_as_they_are_and_stand_for_what_is_read_otherwise(tmp_path):
    checkpoint = open_checkpoint(write_w4a16(tmp_path))
    kept = as_stored(checkpoint, None)
    for name in ("layers.1.experts.2.gate_up", "layers.1.experts.2.down"):
        found = kept.read(name)
        assert isinstance(found, Int4Weight)
        assert torch.equal(found.dequantized(), checkpoint.read(name).T)
    shared = kept.read("layers.3.shared.down")
    assert isinstance(shared, Int4Weight)
    assert torch.equal(shared.dequantized(), checkpoint.read("layers.3.shared.down"))
    assert isinstance(kept.read("layers.1.gate"), torch.Tensor)
    assert isinstance(kept.read("layers.2.dense.up"), torch.Tensor)


def test_experts_in_four_bits_take_five_of_thirty_two_and_compute_what_their_codes_stand_for(tmp_path):
    checkpoint = open_checkpoint(write_w4a16(tmp_path))
    exact = ExpertWeights.load(checkpoint, [0, 2], torch.float32)
    kept = ExpertWeights.load(as_stored(checkpoint, None), [0, 2], torch.float32)
    assert kept.weight_bytes <= exact.weight_bytes / 4  # small matrices are filled up to whole blocks
    hidden_ND = torch.randn(5, 32)
    expected, found = (each.run(1, hidden_ND, [0, 2], [3, 2]) for each in (exact, kept))
    assert (found - expected).norm() < 2e-2 * expected.norm()  # products are in bfloat16


def test_a_shared_expert_in_four_bits_stays_so(tmp_path):
    checkpoint = open_checkpoint(write_w4a16(tmp_path))
    exact, kept = (load_decoder(each, dtype=torch.float32) for each in (checkpoint, as_stored(checkpoint, None)))
    x_TD = torch.randn(4, 32)
    expected, found = (decoder.layers[1].shared(x_TD) for decoder in (exact, kept))
    assert (found - expected).norm() < 2e-2 * expected.norm()
    assert kept.weight_bytes() < exact.weight_bytes()


def test_a_model_of_kept_codes_says_what_the_model_of_their_weights_says(tmp_path):
    checkpoint = open_checkpoint(write_w4a16(tmp_path))
    ids_BS = torch.randint(0, 96, (2, 24), generator=torch.Generator().manual_seed(3))
    logits = []
    for source in (checkpoint, as_stored(checkpoint, None)):
        weights = ExpertWeights.load(source, range(4), torch.float32)
        transport = LocalTransport(weights.run)
        logits.append(run_in_splits(Forward(load_decoder(source, dtype=torch.float32), transport), ids_BS, [24]))
        transport.close()
    assert (logits[1] - logits[0]).norm() < 3e-2 * logits[0].norm()


@pytest.mark.parametrize("group", [8, 16])
def test_groups_smaller_than_ours_are_read_as_weights(tmp_path, group):
    checkpoint = open_checkpoint(write_w4a16(tmp_path, group=group))
    assert as_stored(checkpoint, None) is checkpoint
    assert ExpertWeights.load(as_stored(checkpoint, None), [1], torch.float32).weight_bytes == 2 * 3 * 32 * WIDTH * 4


def test_an_expert_of_which_one_matrix_is_not_in_four_bits_is_read_as_weights(tmp_path):
    checkpoint = open_checkpoint(write_w4a16(tmp_path, left_out="1.feed_forward.experts.2.down_proj"))
    names = kept_names(checkpoint)
    assert "layers.1.experts.2.gate_up" not in names
    assert "layers.1.experts.1.gate_up" in names
    ExpertWeights.load(as_stored(checkpoint, None), range(4), torch.float32)


def test_what_is_to_be_rounded_otherwise_is_rounded_from_the_weights(tmp_path):
    checkpoint = open_checkpoint(write_w4a16(tmp_path))
    assert as_stored(checkpoint, "int8") is checkpoint
