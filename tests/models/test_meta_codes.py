"""Folders of Meta's whose experts its own script has rounded: read as what the codes stand for, or as codes."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from models.checkpoint import KeptCodes, as_stored, kept_names, open_checkpoint
from models.checkpoint.codes import unpack_pairs
from models.gpu.weight import keep
from models.linear import Int4Weight, symmetric_int4
from models.linear.quantization import Fp8Weight
from protos.errors import BadCheckpoint
from tests.models.checkpoint_files import (
    as_meta_fp8,
    as_meta_int4,
    hf_tensors,
    meta_shards,
    packed_pairs,
    write_meta,
)

GROUP = 32
TENSORS = hf_tensors(dense_width=64, expert_width=64)
EXPERT = "layers.1.experts.2"


def write(folder, num_shards, rounded, kind):
    """Write the shards of TENSORS that a function has rounded, and their scales."""
    pairs = [rounded(shard) for shard in meta_shards(TENSORS, num_shards)]
    # What META_FIELDS' formula gives in 64s.
    write_meta(folder, [weights for weights, _ in pairs], multiple_of=64)
    for number, (_, scales) in enumerate(pairs):
        torch.save(scales, folder / f"{kind}_scales_{number}.pt")
    return folder


def rounded_int4(weight_OI, group=GROUP):
    """Return what four bits leave of a weight."""
    packed, scale = packed_pairs(weight_OI, group)
    low, high = (packed << 4) >> 4, packed >> 4
    codes = torch.stack((low, high), dim=2).flatten(1)
    return codes * scale.t().repeat_interleave(group, 1)


def test_codes_of_the_reference_implementation_are_unpacked_to_the_last_bit(shared_dir):
    golden = load_file(shared_dir / "goldens" / "meta_int4_vectors.safetensors")
    codes = unpack_pairs(golden["packed"], is_by_column=False)
    assert torch.equal(codes.to(torch.int8) - 8, golden["q"])
    assert torch.equal(unpack_pairs(golden["packed"].T, is_by_column=True), codes.T)
    weight = symmetric_int4(codes, golden["scale"].T)
    assert torch.equal(weight.dequantized(), golden["dequant"])
    on_gpu = keep(weight, torch.bfloat16, torch.device("cpu"))
    assert on_gpu.form == "int4"
    assert torch.equal(on_gpu.dequantized(), golden["dequant"])


@pytest.mark.parametrize("num_shards", [1, 2])
@pytest.mark.parametrize("rounds_shared", [True, False])
def test_int4_is_read_as_what_its_codes_stand_for(tmp_path, num_shards, rounds_shared, caplog):
    folder = write(tmp_path, num_shards, lambda shard: as_meta_int4(shard, GROUP, rounds_shared=rounds_shared), "int4")
    checkpoint = open_checkpoint(folder)
    assert not caplog.records
    experts = (
        TENSORS["model.layers.1.feed_forward.experts.gate_up_proj"][2],
        (TENSORS["model.layers.1.feed_forward.experts.down_proj"][2]),
    )
    for name, weight in zip((f"{EXPERT}.gate_up", f"{EXPERT}.down"), experts, strict=True):
        assert torch.equal(checkpoint.read(name), rounded_int4(weight.T).T)
    shared = TENSORS["model.layers.1.feed_forward.shared_expert.down_proj.weight"]
    assert torch.equal(checkpoint.read("layers.1.shared.down"), rounded_int4(shared) if rounds_shared else shared)
    last = TENSORS["model.layers.3.feed_forward.experts.down_proj"][0]
    assert torch.equal(checkpoint.read("layers.3.experts.0.down"), rounded_int4(last.T).T if rounds_shared else last)
    # A byte to two weights, four to each scale.
    assert checkpoint.num_bytes(f"{EXPERT}.down") == 64 * 32 // 2 + 4 * 64 // GROUP * 32


@pytest.mark.parametrize("num_shards", [1, 2])
def test_int4_is_kept_as_codes(tmp_path, num_shards):
    checkpoint = open_checkpoint(write(tmp_path, num_shards, lambda shard: as_meta_int4(shard, GROUP), "int4"))
    kept = as_stored(checkpoint, None)
    for name in (f"{EXPERT}.gate_up", f"{EXPERT}.down", "layers.3.shared.up", "layers.3.shared.down"):
        found, weight = kept.read(name), checkpoint.read(name)
        assert isinstance(found, Int4Weight)
        # Scales are kept in bfloat16.
        expected = weight.T if ".experts." in name else weight
        torch.testing.assert_close(found.dequantized(), expected, rtol=2**-8, atol=0)
    assert not kept_names(checkpoint, for_gpu=True)  # its groups are of 128


@pytest.mark.parametrize("num_shards", [1, 2])
def test_fp8_is_read_as_what_its_codes_stand_for_and_kept_where_an_output_has_one_scale(tmp_path, num_shards):
    shards = [as_meta_fp8(shard)[0] for shard in meta_shards(TENSORS, num_shards)]
    checkpoint = open_checkpoint(write(tmp_path, num_shards, as_meta_fp8, "fp8"))
    exact = TENSORS["model.layers.1.feed_forward.experts.gate_up_proj"][2]
    assert ((checkpoint.read(f"{EXPERT}.gate_up") - exact).abs() <= exact.abs() / 16 + 1e-2).all()
    names = kept_names(checkpoint, for_gpu=True)
    # Of several shards, which are rounded by themselves, a down projection has more scales than outputs.
    assert (f"{EXPERT}.down" in names) == (num_shards == 1)
    if num_shards == 1:
        kept = KeptCodes(checkpoint, names).read(f"{EXPERT}.down")
        assert isinstance(kept, Fp8Weight)
        codes = shards[0]["layers.1.feed_forward.experts.moe_w_out_eF_D"].unflatten(0, (4, -1))[2]
        assert torch.equal(kept.values_OI.float(), codes.T.float())
        assert torch.equal(kept.dequantized(), checkpoint.read(f"{EXPERT}.down").T)


def test_codes_whose_scales_are_missing_are_refused(tmp_path):
    folder = write(tmp_path, 2, lambda shard: as_meta_int4(shard, GROUP), "int4")
    (folder / "int4_scales_1.pt").unlink()
    with pytest.raises(
        BadCheckpoint, match=r"consolidated\.01\.pth: .*expected its scales in int4_scales_1\.pt or fp8"
    ):
        open_checkpoint(folder)


def test_two_kinds_of_scales_are_refused(tmp_path):
    folder = write(tmp_path, 1, lambda shard: as_meta_int4(shard, GROUP), "int4")
    torch.save({}, folder / "fp8_scales_0.pt")
    with pytest.raises(BadCheckpoint, match=r"expected one file of scales for a shard, found fp8_scales_0\.pt"):
        open_checkpoint(folder)


def test_scales_of_another_model_are_refused(tmp_path):
    folder = write(tmp_path, 1, lambda shard: as_meta_int4(shard, GROUP), "int4")
    scales = torch.load(folder / "int4_scales_0.pt")
    name = "layers.1.feed_forward.experts.moe_w_in_eD_F"
    torch.save(scales | {name: torch.ones(4, 3, 64)}, folder / "int4_scales_0.pt")
    with pytest.raises(BadCheckpoint, match=rf"{name}: expected scales for whole groups of 32 inputs, found shape"):
        open_checkpoint(folder)
