"""Weights in 8 and 4 bits: how close they stay, and every product with them against its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.linear import int4, int8, pack_linear
from models.linear.dequantized import DequantizedInt4, DequantizedInt8
from models.linear.int4 import Int4Linear
from models.linear.int8 import Int8Linear
from models.linear.quantization import INT4_GROUP, INT8_LEVELS, quantize_int4, quantize_int8

CPU = torch.device("cpu")
# Neither of whole blocks of outputs nor of whole groups of inputs, and both.
SHAPES = [(48, 40), (128, 64)]
needs_int8 = pytest.mark.skipif(int8.num_levels(CPU) == 0, reason="no fast 8-bit products on this processor")
needs_int4 = pytest.mark.skipif(not int4.is_supported(CPU), reason="no fast 4-bit products on this processor")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def test_int8_rounds_to_half_a_step_at_most():
    weight_OI = random(16, 100)
    rounded = quantize_int8(weight_OI)
    steps = (rounded.dequantized() - weight_OI).abs() / rounded.scale_O[:, None]
    assert steps.max() <= 0.5 + 1e-4
    assert rounded.codes_OI.abs().amax(1).eq(INT8_LEVELS).all()


def test_int4_is_no_worse_than_even_steps_between_a_groups_extremes():
    groups = random(64, 10, INT4_GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = (high - low) / 15
    even = ((groups - low) / step).round() * step + low
    found = quantize_int4(groups.flatten(1)).dequantized().unflatten(1, (-1, INT4_GROUP))
    # Scale and zero are bfloat16: a group may lose by their rounding what a better range gains.
    assert relative_error(found, groups) < 0.97 * relative_error(even, groups)


@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.5])
def test_constant_weights_stay_what_they_are(quantize, value):
    rounded = quantize(torch.full((16, 2 * INT4_GROUP), value)).dequantized()
    assert rounded.isfinite().all()
    torch.testing.assert_close(rounded, torch.full_like(rounded, value), atol=0, rtol=1e-2)


@given(num_outputs=st.integers(1, 70), num_inputs=st.integers(1, 100), seed=st.integers(0, 99))
def test_any_shape_can_be_rounded(num_outputs, num_inputs, seed):
    weight_OI = random(num_outputs, num_inputs, seed=seed)
    for quantize, limit in ((quantize_int8, 0.02), (quantize_int4, 0.15)):
        rounded = quantize(weight_OI).dequantized()
        assert rounded.shape == weight_OI.shape
        assert relative_error(rounded, weight_OI) < limit


def test_large_weights_are_rounded_in_parts_alike():
    weight_OI = random(2100, 1024)
    for quantize in (quantize_int8, quantize_int4):
        last = quantize(weight_OI[-3:]).dequantized()
        assert torch.equal(quantize(weight_OI).dequantized()[-3:], last)


def forms(shape: tuple[int, int]):
    """Yield each form that runs here, the weight it stands for, and the error its arithmetic may add."""
    weight_OI = random(*shape)
    by_8, by_4 = quantize_int8(weight_OI), quantize_int4(weight_OI)
    yield DequantizedInt8(by_8), by_8.dequantized(), 0.005
    yield DequantizedInt4(by_4), by_4.dequantized(), 0.005
    if int8.num_levels(CPU):
        yield Int8Linear(by_8, int8.num_levels(CPU)), by_8.dequantized(), 0.025
    if int4.is_supported(CPU):
        yield Int4Linear(by_4), by_4.dequantized(), 0.012


@pytest.mark.parametrize("num_rows", [0, 1, 9, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_form_multiplies_by_the_rounded_weight(shape, dtype, num_rows):
    x_TI = random(num_rows, shape[1], seed=1).to(dtype)
    before_TI = x_TI.clone()
    for linear, weight_OI, limit in forms(shape):
        found_TO = linear(x_TI)
        assert found_TO.dtype == dtype
        assert found_TO.shape == (num_rows, shape[0])
        if num_rows:
            assert relative_error(found_TO, x_TI.double() @ weight_OI.double().t()) < limit
        assert torch.equal(x_TI, before_TI)


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_zeros_give_zeros(shape):
    for linear, _, _ in forms(shape):
        assert not linear(torch.zeros(2, shape[1])).any()


@needs_int8
def test_int8_rounds_each_row_by_itself():
    linear = pack_linear(random(48, 64), "int8")
    small_TI, large_TI = random(1, 64), 1000 * random(1, 64, seed=1)
    together_TO = linear(torch.cat((small_TI, large_TI)))
    torch.testing.assert_close(together_TO[:1], linear(small_TI))


@needs_int8
def test_int8_adds_up_exactly_what_a_16_bit_sum_could_not_hold():
    rounded = quantize_int8(torch.ones(16, 64))
    found_TO = Int8Linear(rounded, int8.num_levels(CPU))(torch.ones(1, 64))
    torch.testing.assert_close(found_TO, torch.full((1, 16), 64.0))


@needs_int4
def test_int4_gives_the_same_for_few_rows_and_many():
    linear = pack_linear(random(192, 160), "int4")
    x_TI = random(300, 160, seed=1)
    assert relative_error(linear(x_TI)[:9], linear(x_TI[:9])) < 0.012


@pytest.mark.parametrize(("quantize", "bits"), [("int8", 8), ("int4", 5)])
def test_bytes_count_scales_and_zeros(quantize, bits):
    num_outputs, num_inputs = 1536, 768
    held = pack_linear(random(num_outputs, num_inputs), quantize).num_bytes
    assert held == pytest.approx(num_outputs * num_inputs * bits / 8, rel=0.02)


def test_other_devices_get_the_form_that_runs_everywhere():
    weight_OI = torch.ones(64, 64, device="meta")
    assert isinstance(pack_linear(weight_OI, "int8"), DequantizedInt8)
    assert isinstance(pack_linear(weight_OI, "int4"), DequantizedInt4)
