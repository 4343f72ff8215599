"""The random checkpoint: read by Herd, equal for equal settings, small to make."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from benchmarks.random_llama4 import RandomLlama4, write_random_llama4
from models.checkpoint import open_checkpoint

SMALL = RandomLlama4(layers=4, hidden=32, heads=4, kv_heads=2, head_size=8, experts=4, expert_width=24, vocab=96)


def test_the_benchmark_model_has_the_size_it_says():
    assert RandomLlama4().num_parameters() == 790_137_600


def test_a_written_checkpoint_opens_with_every_tensor(tmp_path):
    write_random_llama4(tmp_path, SMALL)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.moe_layers == (0, 1, 2, 3)
    assert checkpoint.config.nope_layers == (3,)
    assert checkpoint.read("layers.2.experts.3.gate_up").shape == (32, 48)
    assert sum(checkpoint.read(name).numel() for name in checkpoint.names) == SMALL.num_parameters()


def test_every_value_is_the_same_in_bfloat16_and_in_float32(tmp_path):
    write_random_llama4(tmp_path, SMALL)
    checkpoint = open_checkpoint(tmp_path)
    for name in checkpoint.names:
        exact = checkpoint.read(name, torch.float32)
        assert torch.equal(exact.to(torch.bfloat16).float(), exact), name


def test_equal_settings_give_equal_files_and_another_seed_does_not(tmp_path):
    for folder, model in (("one", SMALL), ("same", SMALL), ("other", replace(SMALL, seed=1))):
        write_random_llama4(tmp_path / folder, model)
    shard = "model-00002-of-00005.safetensors"
    one, same, other = ((tmp_path / folder / shard).read_bytes() for folder in ("one", "same", "other"))
    assert one == same
    assert one != other


def test_a_folder_that_holds_the_model_is_not_written_again(tmp_path):
    write_random_llama4(tmp_path, SMALL)
    (tmp_path / "config.json").write_text("{}")
    write_random_llama4(tmp_path, SMALL)
    assert json.loads((tmp_path / "config.json").read_text()) == {}


def test_a_folder_with_another_model_is_written_anew(tmp_path):
    write_random_llama4(tmp_path, SMALL)
    write_random_llama4(tmp_path, replace(SMALL, layers=2))
    assert open_checkpoint(tmp_path).config.num_layers == 2
