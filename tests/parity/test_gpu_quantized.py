"""Quantised releases on the path of a GPU: codes as they are stored, and the logits of what they stand for."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("triton")

from models.checkpoint import KeptCodes, kept_names, open_checkpoint
from models.gpu.linear import GpuLinear
from models.llama4.decoder import load_decoder
from router.forward import Forward
from tests.models.checkpoint_files import as_fp8, as_int4, hf_tensors, with_separate_experts, write_hf
from tests.parity.gpu_model import load_gpu_model
from tests.parity.splits import run_in_splits
from tests.parity.transports import open_transport

TOLERANCE = 1e-3
STEPS = [3]
"""A short prompt: what attention makes of longer ones, `test_gpu_kernels` asks."""


def form(linear) -> str:
    return linear.weight.form if isinstance(linear, GpuLinear) else "torch's"


@pytest.mark.parametrize(
    ("golden", "held"),
    [("scout_fp8ct", "fp8"), ("scout_fbgemm", "fp8"), ("scout_w4a16", "plain")],
    ids=["fp8ct", "fbgemm", "w4a16 in groups of 16"],
)
def test_a_release_is_held_as_it_is_stored_and_gives_its_logits(shared_dir, golden, held):
    folder = shared_dir / "goldens" / golden
    checkpoint = open_checkpoint(folder)
    model = load_gpu_model(KeptCodes(checkpoint, kept_names(checkpoint, for_gpu=True)))
    assert {
        form(each) for mlps in model.experts.values() for mlp in mlps.values() for each in (mlp.gate_up, mlp.down)
    } == {held}
    # The releases' lists of exceptions name attention and the LM head, so these have no codes.
    exceptions = [model.decoder._lm_head, *(layer.attention.qkv for layer in model.decoder.layers)]
    assert {form(each) for each in exceptions} == {"torch's"}
    expected, num_tokens = load_file(folder / "golden.safetensors"), sum(STEPS)
    logits = run_in_splits(model.forward, expected["input_ids"][:1, :num_tokens], STEPS)
    assert (logits.cpu() - expected["logits_weight_dequant"][:1, :num_tokens]).abs().max() < TOLERANCE


@pytest.mark.parametrize("held", ["fp8", "int4"])
def test_every_matrix_of_a_release_may_be_codes_but_the_gates_and_the_embedding(tmp_path, held):
    width = 128  # a group's
    tensors = with_separate_experts(hf_tensors(hidden=width, dense_width=width, expert_width=width))
    for name in list(tensors):
        if name.endswith("proj.weight") or name == "lm_head.weight":
            linear, num_inputs = name.removesuffix(".weight"), tensors[name].shape[1]
            # The output of attention has fewer inputs than a group: fp8 in both.
            is_fp8 = held == "fp8" or num_inputs < width
            tensors = as_fp8(tensors, linear) if is_fp8 else as_int4(tensors, linear, width)
    widths = {"hidden_size": width, "intermediate_size_mlp": width, "intermediate_size": width}
    checkpoint = open_checkpoint(write_hf(tmp_path, tensors, **widths))
    model = load_gpu_model(KeptCodes(checkpoint, kept_names(checkpoint, for_gpu=True)))
    for layer in model.decoder.layers:
        mlp = layer.shared or layer.dense
        assert {form(each) for each in (layer.attention.qkv, mlp.gate_up, mlp.down)} == {held}
        assert form(layer.attention.o) == "fp8"
    assert {
        form(each) for mlps in model.experts.values() for mlp in mlps.values() for each in (mlp.gate_up, mlp.down)
    } == {held}
    assert form(model.decoder._lm_head) == held
    num_tokens = sum(STEPS)
    ids_BS = torch.randint(0, 96, (1, num_tokens), generator=torch.Generator().manual_seed(3))
    with open_transport(checkpoint, "local") as transport:
        exact = Forward(load_decoder(checkpoint, dtype=torch.float32), transport)
        expected = run_in_splits(exact, ids_BS, [num_tokens])
    found = run_in_splits(model.forward, ids_BS, STEPS).cpu()
    assert (found - expected).abs().max() < TOLERANCE * expected.abs().max()
