"""Weights as a GPU holds them: what rounding leaves, and that codes from elsewhere are kept."""

from __future__ import annotations

import pytest
import torch

from models.gpu.weight import GROUP, fp8, int4, int8, plain, round_fp8, round_int4, round_int8

ROUND = {"int8": round_int8, "fp8": round_fp8, "int4": round_int4}


def random_weight(num_outputs: int, num_inputs: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_outputs, num_inputs, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize(("form", "error", "bits"), [("int8", 0.01, 8), ("fp8", 0.03, 8), ("int4", 0.12, 4)])
@pytest.mark.parametrize("num_inputs", [256, 200])
def test_rounding_stays_close_in_fewer_bytes(form, error, bits, num_inputs):
    weight_OI = random_weight(96, num_inputs)
    rounded = ROUND[form](weight_OI)
    assert rounded.form == form
    assert rounded.dequantized().shape == weight_OI.shape
    assert (rounded.dequantized() - weight_OI.float()).norm() < error * weight_OI.float().norm()
    assert rounded.values.nbytes == 96 * -(-num_inputs // GROUP) * GROUP * bits // 8 or form != "int4"


@pytest.mark.parametrize("form", ROUND)
def test_rows_of_zeros_and_of_one_large_weight_are_kept_to_the_last_bit(form):
    weight_OI = torch.zeros(3, 2 * GROUP, dtype=torch.bfloat16)
    weight_OI[1, 5], weight_OI[2, 200] = 448.0, -3.5
    found_OI = ROUND[form](weight_OI).dequantized()
    torch.testing.assert_close(found_OI, weight_OI.float(), rtol=2**-8, atol=0)


def test_a_weight_that_is_not_rounded_is_the_same_memory():
    weight_OI = random_weight(4, 8)
    assert plain(weight_OI).dequantized().data_ptr() == weight_OI.data_ptr()
    assert torch.equal(plain(weight_OI.t()).values, weight_OI.t())


def test_the_better_of_several_ranges_is_kept():
    weight_OI = random_weight(8, GROUP)
    weight_OI[:, 0] = 8.0  # an outlier that widens every step
    largest = weight_OI.float().abs().amax(1, keepdim=True) / 7
    at_full_range = (weight_OI.float() / largest).round() * largest
    found = (round_int4(weight_OI).dequantized() - weight_OI.float()).norm()
    assert found <= (at_full_range - weight_OI.float()).norm()


def test_codes_from_elsewhere_mean_what_they_meant():
    draw = torch.Generator().manual_seed(1)
    codes_OI = torch.randint(0, 16, (5, 2 * GROUP), generator=draw, dtype=torch.uint8)
    scale_OG = torch.rand(5, 2, generator=draw).bfloat16()
    expected = (codes_OI.float() - 8) * scale_OG.float().repeat_interleave(GROUP, 1)
    assert torch.equal(int4(codes_OI, scale_OG).dequantized(), expected)
    # One scale for a whole row, as some releases have it.
    expected = (codes_OI.float() - 8) * scale_OG[:, :1].float()
    assert torch.equal(int4(codes_OI, scale_OG[:, :1]).dequantized(), expected)
    values_OI, scale_O = random_weight(5, 7).to(torch.float8_e4m3fn), torch.rand(5)
    assert torch.equal(fp8(values_OI, scale_O).dequantized(), values_OI.float() * scale_O[:, None])
    assert torch.equal(int8(codes_OI.to(torch.int8), scale_O).dequantized(), codes_OI.float() * scale_O[:, None])


@pytest.mark.parametrize("num_scales", [3, 8])
def test_groups_that_are_no_multiple_of_a_byte_tile_are_refused(num_scales):
    with pytest.raises(ValueError, match="expected one scale for 128 inputs or a multiple"):
        int4(torch.zeros(4, 2 * GROUP, dtype=torch.uint8), torch.ones(4, num_scales))


def test_every_fp8_number_is_its_bits_moved_and_scaled():
    """What the kernels' assembly relies on, which no interpreter runs: see models/gpu/product.py, e4m3_to_bfloat16."""
    numbers = torch.arange(256, dtype=torch.uint8)
    halves = numbers.int() << 8
    moved = ((halves >> 4) & 0x07F0) | (halves & 0x8000)
    found = moved.to(torch.int16).view(torch.bfloat16) * torch.tensor(0x7B80, dtype=torch.int16).view(torch.bfloat16)
    expected = numbers.view(torch.float8_e4m3fn).float()
    is_number = ~expected.isnan()
    assert is_number.sum() == 254
    assert torch.equal(found.float()[is_number], expected[is_number])
