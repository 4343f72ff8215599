"""Which weights a process holds, and what it reads for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experts.weights import ExpertWeights
from models.checkpoint import open_checkpoint
from protos.errors import BadConfig
from tests.models.checkpoint_files import write_hf


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model with 4 experts in layers 1 and 3."""
    return write_hf(tmp_path_factory.mktemp("checkpoint"))


def test_loads_only_the_chosen_experts_bytes(folder):
    checkpoint = open_checkpoint(folder)
    weights = ExpertWeights.load(checkpoint, [2], torch.float32)
    expected = 2 * (32 * 48 + 24 * 32) * 4
    assert weights.loaded_bytes == checkpoint.bytes_read == checkpoint.expert_bytes(2) == expected
    assert weights.weight_bytes == expected
    assert weights.layers == (1, 3)


def test_conversion_changes_bytes_in_memory_and_not_bytes_read(folder):
    weights = ExpertWeights.load(open_checkpoint(folder), range(4), torch.bfloat16)
    # Half of what was read, but oneDNN pads these tiny matrices to whole blocks.
    assert weights.loaded_bytes / 2 <= weights.weight_bytes < weights.loaded_bytes


def test_runs_each_expert_on_its_own_tokens(folder):
    checkpoint = open_checkpoint(folder)
    weights = ExpertWeights.load(checkpoint, [3, 0], torch.float32)
    hidden_ND = torch.randn(5, 32, generator=torch.Generator().manual_seed(3))
    found_ND = weights.run(3, hidden_ND, [0, 3], [2, 3])
    for expert, rows in ((0, slice(0, 2)), (3, slice(2, 5))):
        gate_nF, up_nF = (hidden_ND[rows] @ checkpoint.read(f"layers.3.experts.{expert}.gate_up")).chunk(2, dim=-1)
        expected_nD = (torch.nn.functional.silu(gate_nF) * up_nF) @ checkpoint.read(f"layers.3.experts.{expert}.down")
        torch.testing.assert_close(found_ND[rows], expected_nD, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("quantize", "error"), [("int8", 0.03), ("int4", 0.2)])
def test_rounded_experts_stay_close_in_fewer_bytes(folder, quantize, error):
    exact = ExpertWeights.load(open_checkpoint(folder), [0, 3], torch.float32)
    rounded = ExpertWeights.load(open_checkpoint(folder), [0, 3], torch.float32, quantize=quantize)
    hidden_ND = torch.randn(5, 32, generator=torch.Generator().manual_seed(3))
    expected_ND, found_ND = (weights.run(1, hidden_ND, [0, 3], [2, 3]) for weights in (exact, rounded))
    assert (found_ND - expected_ND).norm() < error * expected_ND.norm()
    # Not a quarter: blocks that such tiny matrices do not fill are counted.
    assert rounded.weight_bytes < exact.weight_bytes
    assert rounded.loaded_bytes == exact.loaded_bytes


def test_outputs_come_back_to_where_the_tokens_are(folder):
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    source = open_checkpoint(folder)
    held = ExpertWeights.load(source, [0, 2], torch.float32, device=device)
    hidden_ND = torch.randn(5, source.config.hidden_size, generator=torch.Generator().manual_seed(0))
    layer, counts = source.config.moe_layers[0], (3, 2)
    outputs_ND = held.run(layer, hidden_ND, (0, 2), counts)
    assert outputs_ND.device.type == "cpu"
    on_device_ND = held.run(layer, hidden_ND.to(device), (0, 2), counts)
    assert on_device_ND.device == device
    assert torch.equal(on_device_ND.cpu(), outputs_ND)


def test_reports_progress_up_to_all_bytes(folder):
    seen: list[tuple[int, int]] = []
    weights = ExpertWeights.load(
        open_checkpoint(folder), [0, 1], torch.float32, lambda done, total: seen.append((done, total))
    )
    assert len(seen) == 4
    assert seen[-1] == (weights.loaded_bytes, weights.loaded_bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(
    ("expert_ids", "words"), [([4], "0 to 3"), ([-1, 0], "0 to 3"), ([1, 1], "each"), ([], "at least one")]
)
def test_refuses_ids_the_model_does_not_have_or_twice(folder, expert_ids, words):
    with pytest.raises(BadConfig, match=words):
        ExpertWeights.load(open_checkpoint(folder), expert_ids, torch.float32)


def test_refuses_a_dense_model(shared_dir):
    checkpoint = open_checkpoint(shared_dir / "goldens" / "llama31")
    with pytest.raises(BadConfig, match="dense"):
        ExpertWeights.load(checkpoint, [0], torch.float32)
