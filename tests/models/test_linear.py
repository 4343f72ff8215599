"""Every form of a resident weight against the definition."""

from __future__ import annotations

import pytest
import torch

from models.cpu.library import load_library
from models.linear import pack_linear, share_linear
from models.linear.onednn import PackedLinear, SmallLinear, UnpackedLinear
from models.linear.plain import PlainLinear
from models.linear.row_major import RowMajorLinear

SMALL, LARGE = (48, 32), (1544, 390)
FORMS = {
    "plain": (PlainLinear, SMALL),
    "packed": (PackedLinear, LARGE),
    "small": (SmallLinear, SMALL),
    "unpacked": (UnpackedLinear, LARGE),
}


def random(shape: tuple[int, int], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("num_rows", [0, 1, 8, 9, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_each_form_multiplies_any_number_of_rows(form, dtype, num_rows):
    make, shape = FORMS[form]
    weight_OI, x_TI = random(shape, dtype), random((num_rows, shape[1]), dtype, seed=1)
    found_TO = make(weight_OI)(x_TI)
    assert found_TO.dtype == dtype
    expected_TO = x_TI.double() @ weight_OI.double().t()
    torch.testing.assert_close(found_TO.double(), expected_TO, atol=1e-4, rtol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("form", FORMS)
def test_weights_may_be_transposed_views(form):
    make, shape = FORMS[form]
    weight_OI, x_TI = random(shape, torch.float32), random((3, shape[1]), torch.float32)
    found_TO = make(weight_OI.t().contiguous().t())(x_TI)
    torch.testing.assert_close(found_TO, x_TI @ weight_OI.t(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_bytes_are_those_of_the_weight(form):
    make, shape = FORMS[form]
    held = make(random(shape, torch.float32)).num_bytes
    # oneDNN pads to whole blocks.
    assert shape[0] * shape[1] * 4 <= held < 1.1 * shape[0] * shape[1] * 4


@pytest.mark.parametrize(
    ("shape", "dtype", "form"),
    [
        (SMALL, torch.float32, SmallLinear),
        (LARGE, torch.float32, PackedLinear),
        (SMALL, torch.bfloat16, RowMajorLinear if load_library() else PackedLinear),
        (SMALL, torch.float64, PlainLinear),
    ],
)
def test_form_is_chosen_by_dtype_and_size(shape, dtype, form):
    assert isinstance(pack_linear(random(shape, dtype)), form)


def test_weights_on_other_devices_stay_plain():
    assert isinstance(pack_linear(torch.ones(LARGE, device="meta")), PlainLinear)
    assert isinstance(share_linear(torch.ones(LARGE, device="meta")), PlainLinear)


def test_shared_weights_are_not_copied():
    weight_OI = random(SMALL, torch.float32)
    shared = share_linear(weight_OI)
    weight_OI.zero_()
    assert not shared(torch.ones(1, SMALL[1])).any()
