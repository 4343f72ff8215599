"""The tensor codec: bytes round-trip, and whatever does not add up is refused before it is believed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protos.codec import decode_tensor, encode_tensor
from protos.errors import BadTensor
from protos.tensor.v1 import tensor_pb2

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int64]


@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3), st.integers(0, 2**31))
def test_a_tensor_survives_the_wire_bit_for_bit(dtype, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.randn(shape, generator=generator) * 100).to(dtype)
    wire = tensor_pb2.Tensor.FromString(encode_tensor(tensor).SerializeToString())
    decoded = decode_tensor(wire, dtype=dtype, shape=[None] * len(shape))
    assert torch.equal(decoded, tensor)
    assert decoded.dtype == dtype


def test_a_view_with_strides_is_sent_row_major():
    tensor = torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(decode_tensor(encode_tensor(tensor), dtype=torch.float32, shape=(3, 2)), tensor)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dtype": tensor_pb2.DTYPE_FLOAT16}, "expected dtype torch.float32, found torch.float16"),
        ({"dtype": tensor_pb2.DTYPE_UNSPECIFIED}, "found code 0"),
        ({"dtype": 77}, "found code 77"),
        ({"shape": [2, 4]}, r"expected shape \[any, 3\], found \[2, 4\]"),
        ({"shape": [6]}, r"found \[6\]"),
        ({"shape": [-2, 3]}, r"found \[-2, 3\]"),
        ({"shape": [3, 3]}, "expected 36 bytes"),
        ({"shape": [2**40, 3]}, "expected 13194139533312 bytes"),
        ({"data": b"\0" * 23}, "expected 24 bytes .* found 23"),
        ({"data": b""}, "found 0"),
    ],
)
def test_a_tensor_that_is_not_what_it_says_is_refused(change, says):
    fields = {"dtype": tensor_pb2.DTYPE_FLOAT32, "shape": [2, 3], "data": bytes(24)} | change
    with pytest.raises(BadTensor, match=says):
        decode_tensor(tensor_pb2.Tensor(**fields), dtype=torch.float32, shape=(None, 3))


def test_a_dtype_the_wire_does_not_have_is_refused():
    with pytest.raises(BadTensor, match="complex64"):
        encode_tensor(torch.zeros(1, dtype=torch.complex64))
