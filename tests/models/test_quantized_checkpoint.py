"""Releases whose weights are codes with scales: read as what they stand for, refused where that is not known."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from models.arena import Arena
from models.checkpoint import open_checkpoint
from models.checkpoint.codes import unpack_int4, write_weights
from protos.errors import BadCheckpoint, BadConfig
from tests.models.checkpoint_files import as_fp8, as_int4, hf_tensors, packed_int4, with_separate_experts, write_hf

EXPERT = "model.layers.1.feed_forward.experts.2"


@pytest.fixture
def separate() -> dict[str, torch.Tensor]:
    return with_separate_experts(hf_tensors())


def test_codes_of_four_bits_come_out_in_order():
    codes = torch.randint(-8, 8, (6, 64))
    assert torch.equal(unpack_int4(packed_int4(codes)), (codes + 8).to(torch.uint8))


@pytest.mark.parametrize("scales_shape", [(12, 1), (1, 40), (12, 5), (3, 5), (1, 1)])
@pytest.mark.parametrize("is_turned", [False, True])
def test_a_scale_is_for_as_many_rows_and_columns_as_there_are_for_one(scales_shape, is_turned):
    codes, scales = torch.randn(12, 40).to(torch.float8_e4m3fn), torch.rand(scales_shape)
    out = torch.empty(40, 12).T if is_turned else torch.empty(12, 40)
    write_weights(codes, scales, out)
    each = scales.repeat_interleave(12 // scales_shape[0], 0).repeat_interleave(40 // scales_shape[1], 1)
    assert torch.equal(out, codes.float() * each)


@pytest.mark.parametrize("scales_shape", [(700, 8), (1, 1024), (2, 8), (350, 1)])
def test_large_weights_are_made_in_parts(scales_shape):
    codes, scales = torch.randint(-8, 8, (700, 1024)), torch.rand(scales_shape)
    out = torch.empty(700, 1024)
    write_weights(packed_int4(codes), scales, out)
    each = scales.repeat_interleave(700 // scales_shape[0], 0).repeat_interleave(1024 // scales_shape[1], 1)
    assert torch.equal(out, codes.float() * each)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory", [None, Arena()])
def test_an_expert_of_fp8_is_read_as_its_codes_times_scales(tmp_path, separate, dtype, memory):
    for part in ("gate", "up", "down"):
        separate = as_fp8(separate, f"{EXPERT}.{part}_proj")
    checkpoint = open_checkpoint(write_hf(tmp_path, separate))
    gate, up = (
        separate[f"{EXPERT}.{part}_proj.weight"].float() * separate[f"{EXPERT}.{part}_proj.weight_scale"]
        for part in ("gate", "up")
    )
    found = checkpoint.read("layers.1.experts.2.gate_up", dtype, memory)
    assert found.dtype == (dtype or torch.float32)
    assert torch.equal(found, torch.cat([gate, up]).T.to(found.dtype))
    # One byte to a weight, four to a scale, which each output has.
    assert checkpoint.num_bytes("layers.1.experts.2.gate_up") == gate.numel() + up.numel() + 4 * 2 * gate.shape[0]
    assert checkpoint.bytes_read == checkpoint.num_bytes("layers.1.experts.2.gate_up")
    assert sum(each.num_bytes for each in checkpoint.locate("layers.1.experts.2.gate_up")) == checkpoint.bytes_read
    assert checkpoint.dtype("layers.1.experts.2.gate_up") == torch.float32


def test_any_linear_layer_may_be_int4_and_those_that_are_not_come_as_they_are(tmp_path, separate, caplog):
    shared = "model.layers.1.feed_forward.shared_expert.gate_proj"
    plain = separate[f"{shared}.weight"]
    tensors = as_int4(as_int4(separate, shared, 16), f"{EXPERT}.down_proj", 8)
    checkpoint = open_checkpoint(write_hf(tmp_path, tensors))
    scale = tensors[f"{shared}.weight_scale"].float().repeat_interleave(16, 1)
    assert torch.equal(
        checkpoint.read("layers.1.shared.gate"), (unpack_int4(tensors[f"{shared}.weight_packed"]) - 8.0) * scale
    )
    assert (checkpoint.read("layers.1.shared.gate") - plain).abs().max() <= scale.max() / 2
    assert torch.equal(checkpoint.read("layers.1.shared.up"), separate[f"{shared.replace('gate', 'up')}.weight"])
    assert not caplog.records  # weight_shape is known


def test_weights_are_counted_however_they_are_stored(tmp_path, separate):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = open_checkpoint(write_hf(tmp_path / "a", separate))
    rounded = open_checkpoint(write_hf(tmp_path / "b", as_fp8(separate, f"{EXPERT}.down_proj")))
    assert (plain.router_weights, plain.expert_weights) == (rounded.router_weights, rounded.expert_weights)
    assert plain.router_weights == plain.router_bytes // 4
    assert plain.expert_weights == plain.expert_bytes(0) // 4
    assert rounded.total_bytes < plain.total_bytes


@pytest.mark.parametrize("name", ["scout_fp8ct", "scout_fbgemm", "scout_w4a16"])
def test_every_quantised_golden_reads_all_of_its_weights(shared_dir, name, caplog):
    folder = shared_dir / "goldens" / name
    checkpoint = open_checkpoint(folder)
    for tensor in checkpoint.names:
        assert checkpoint.read(tensor).isfinite().all()
    stored = load_file(folder / "model.safetensors")
    assert checkpoint.bytes_read == sum(each.nbytes for key, each in stored.items() if "weight_shape" not in key)
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("weight_zero_point", "not symmetric"),
        ("weight_g_idx", "inputs are reordered"),
        ("weight_global_scale", "scales have a scale"),
    ],
)
def test_codes_that_stand_for_something_else_are_refused(tmp_path, separate, name, reason):
    tensors = as_int4(separate, f"{EXPERT}.up_proj", 8) | {f"{EXPERT}.up_proj.{name}": torch.zeros(1)}
    with pytest.raises(BadCheckpoint, match=f"{EXPERT}.up_proj: expected .*{reason}.*use another release"):
        open_checkpoint(write_hf(tmp_path, tensors))


def test_codes_without_scales_are_refused(tmp_path, separate):
    tensors = as_fp8(separate, f"{EXPERT}.up_proj")
    del tensors[f"{EXPERT}.up_proj.weight_scale"]
    with pytest.raises(BadCheckpoint, match=f"expected the tensor {EXPERT}.up_proj.weight_scale, found none"):
        open_checkpoint(write_hf(tmp_path, tensors))


def test_groups_that_do_not_divide_the_inputs_are_refused(tmp_path, separate):
    tensors = as_int4(separate, f"{EXPERT}.up_proj", 8)
    tensors[f"{EXPERT}.up_proj.weight_scale"] = tensors[f"{EXPERT}.up_proj.weight_scale"][:, :3].contiguous()
    with pytest.raises(BadCheckpoint, match=r"to be whole groups .* found 3 groups"):
        open_checkpoint(write_hf(tmp_path, tensors))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "gptq"}, "expected fp8 .*, found gptq, which is not read"),
        ({"quant_method": "compressed-tensors"}, "config_groups to be an object"),
        ({"quant_method": "compressed-tensors", "transform_config": {"config_groups": {}}}, "no .*transform_config"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "block"}}},
            },
            "found 8 float block, which is not read",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {"weights": {"num_bits": 4, "type": "int", "strategy": "group", "symmetric": False}}
                },
            },
            "found zero points, which is not read",
        ),
    ],
)
def test_releases_in_other_forms_are_refused_by_their_configuration(tmp_path, separate, config, words):
    with pytest.raises(BadConfig, match=words):
        open_checkpoint(write_hf(tmp_path, separate, quantization_config=config))


@pytest.mark.parametrize("config", [{}, None, False])
def test_a_configuration_that_says_nothing_is_no_hindrance(tmp_path, separate, config):
    open_checkpoint(write_hf(tmp_path, separate, quantization_config=config))
