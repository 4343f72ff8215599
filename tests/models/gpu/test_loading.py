"""Weights go to a GPU layer by layer: what lives at once while they are read and rounded."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models.checkpoint import KeptCodes, as_stored, kept_names, open_checkpoint
from models.checkpoint.tensor_shapes import tensor_shapes
from models.gpu import weight
from models.gpu.linear import GpuLinear
from models.linear import quantization
from models.llama4.decoder import load_decoder
from protos.errors import BadConfig
from tests.models.checkpoint_files import as_fp8, as_int4, hf_tensors, write_hf
from tests.models.gpu.live_bytes import Handed, LiveBytes
from tests.tiny import TINY

DEEP = dataclasses.replace(
    TINY, hidden_size=128, vocab_size=128, num_layers=6, moe_layers=(1, 3, 5), expert_width=128, dense_width=256
)
SHAPES = tensor_shapes(DEEP)
EXACT = {"embed", "norm", *(name for name in SHAPES if name.endswith(("1.gate", "3.gate", "5.gate", "_norm")))}
"""What stays as it is."""
ROUND = {"int8": weight.round_int8, "fp8": weight.round_fp8, "int4": weight.round_int4}
PART_NUMEL = 2**12
# What rounding a part takes besides the result: five numbers of float32 for each weight, and what a group has one of.
PART_BYTES = 22 * PART_NUMEL


class CountedWeights:
    """A source of random weights that counts how many bytes of its matrices live at once."""

    def __init__(self):
        self.config = DEEP
        self.reads = 0
        self.handed = Handed()

    def read(self, name, dtype=None):
        self.reads += 1
        made = torch.rand(SHAPES[name], dtype=dtype)
        return made if name in EXACT else self.handed.out(made)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(weight, "_PART_NUMEL", PART_NUMEL)
    monkeypatch.setattr(quantization, "_PART_NUMEL", PART_NUMEL)


def layer_bytes(layer: int) -> int:
    shapes = (
        shape for name, shape in SHAPES.items() if name.startswith(f"layers.{layer}.") and ".experts." not in name
    )
    return sum(2 * torch.Size(shape).numel() for shape in shapes)


@pytest.mark.parametrize("form", ROUND)
def test_rounding_needs_a_part_of_a_weight_at_a_time(form, small_parts):
    weight_OI = torch.randn(256, 512).bfloat16()
    with LiveBytes() as live:
        rounded = ROUND[form](weight_OI)
    assert live.most <= rounded.num_bytes + PART_BYTES
    assert weight_OI.nbytes > PART_BYTES


@pytest.mark.parametrize("quantize", [None, "int8", "fp8", "int4"])
def test_a_model_is_read_in_the_room_of_what_stays_and_one_layer(quantize, small_parts):
    source = CountedWeights()
    with LiveBytes() as live:
        decoder = load_decoder(source, dtype=torch.bfloat16, quantize=quantize, for_gpu=True)
    largest = max(map(layer_bytes, range(DEEP.num_layers)))
    assert live.most <= decoder.weight_bytes() + largest
    # Gate and up of a dense layer are one product: no other matrix waits for them.
    if quantize is not None:
        assert source.handed.most == 2 * 2 * DEEP.dense_width * DEEP.hidden_size


@pytest.mark.parametrize(("quantize", "head"), [("int8", "int8"), ("int4", "int8"), ("fp8", "fp8")])
@pytest.mark.parametrize("is_tied", [False, True])
def test_the_lm_head_never_has_fewer_than_eight_bits(quantize, head, is_tied):
    source = CountedWeights()
    source.config = dataclasses.replace(DEEP, tie_embeddings=is_tied)
    decoder = load_decoder(source, dtype=torch.bfloat16, quantize=quantize, for_gpu=True)
    assert isinstance(decoder._lm_head, GpuLinear)
    assert decoder._lm_head.weight.form == head
    assert decoder.layers[0].dense.gate_up.weight.form == quantize


def gpu_decoder(folder, tensors, **changes):
    """Load a folder of weights as a GPU holds them."""
    checkpoint = open_checkpoint(write_hf(folder, tensors, **changes))
    kept = KeptCodes(checkpoint, kept_names(checkpoint, for_gpu=True))
    return load_decoder(kept, dtype=torch.float32, for_gpu=True)


def test_groups_of_128_stay_codes_and_smaller_ones_become_numbers(tmp_path):
    tensors = hf_tensors(expert_width=128)
    shared = "model.layers.1.feed_forward.shared_expert"
    tensors = as_int4(as_int4(tensors, f"{shared}.down_proj", 128), f"{shared}.gate_proj", 32)
    shared = gpu_decoder(tmp_path, tensors, intermediate_size=128).layers[1].shared
    assert isinstance(shared.down, GpuLinear)
    assert shared.down.weight.form == "int4"
    stored = open_checkpoint(tmp_path).read("layers.1.shared.down")
    assert torch.equal(shared.down.weight.dequantized(), stored)
    assert not isinstance(shared.gate_up, GpuLinear)


def test_projections_of_which_one_has_no_codes_become_numbers(tmp_path):
    tensors = hf_tensors()
    for part in "qk":
        tensors = as_fp8(tensors, f"model.layers.0.self_attn.{part}_proj")
    for part in "qkv":
        tensors = as_fp8(tensors, f"model.layers.1.self_attn.{part}_proj")
    mixed, whole, *_ = gpu_decoder(tmp_path, tensors).layers
    checkpoint = open_checkpoint(tmp_path)
    stored = [torch.cat([checkpoint.read(f"layers.{layer}.attn.{part}") for part in "qkv"]) for layer in (0, 1)]
    assert not isinstance(mixed.attention.qkv, GpuLinear)
    torch.testing.assert_close(mixed.attention.qkv(torch.eye(32)).T, stored[0])
    assert whole.attention.qkv.weight.form == "fp8"
    assert torch.equal(whole.attention.qkv.weight.dequantized(), stored[1])


@pytest.mark.parametrize(("quantize", "stays"), [(None, True), ("fp8", True), ("int8", False), ("int4", False)])
def test_codes_stay_unless_weights_are_to_be_rounded_otherwise(tmp_path, quantize, stays):
    tensors = as_fp8(hf_tensors(), "model.layers.0.self_attn.o_proj")
    checkpoint = open_checkpoint(write_hf(tmp_path, tensors))
    names = kept_names(checkpoint, quantize, for_gpu=True)
    assert names == ({"layers.0.attn.o"} if stays else set())
    assert as_stored(checkpoint, quantize) is checkpoint  # on a CPU, fp8 is read as numbers
    decoder = load_decoder(KeptCodes(checkpoint, names), dtype=torch.float32, quantize=quantize, for_gpu=True)
    if quantize == "fp8":
        found = decoder.layers[0].attention.o.weight.values
        assert torch.equal(found.float(), tensors["model.layers.0.self_attn.o_proj.weight"].float())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fp8_without_a_gpu_is_refused_before_a_weight_is_read(device):
    source = CountedWeights()
    words = f"expected a GPU .* for weights in fp8, found {device}: quantize to int8 or int4"
    with pytest.raises(BadConfig, match=words):
        load_decoder(source, dtype=torch.bfloat16, quantize="fp8", device=device)
    assert not source.reads
