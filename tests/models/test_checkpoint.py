"""Checkpoints in Hugging Face's layouts: the same weights read from each, and only the bytes asked for."""

import logging
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import Llama4ForCausalLM, Llama4TextConfig, LlamaConfig, LlamaForCausalLM

from models.checkpoint import open_checkpoint
from models.presets import MAVERICK, SCOUT
from tests.models.checkpoint_files import (
    hf_tensors,
    with_separate_experts,
    write_hf,
    write_hf_shards,
    write_sparse_release,
)
from tests.models.published_configs import MAVERICK_TEXT, SCOUT_TEXT, multimodal

GOLDENS = ["scout", "maverick", "top2", "guard", "mm", "llama1", "llama2_gqa", "codellama", "llama3", "llama31"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The tiny model in the plainest layout: one file, experts fused, no prefix."""
    return open_checkpoint(write_hf(tmp_path_factory.mktemp("plain")))


def assert_same_tensors(found, expected):
    assert found.names == expected.names
    for name in expected.names:
        assert torch.equal(found.read(name), expected.read(name)), name


def os_bytes_read():
    """Return the bytes this process has asked the system to read; its own line in /proc counts too."""
    fields = Path("/proc/self/io").read_text().split()
    return int(fields[fields.index("rchar:") + 1])


def test_a_fused_expert_is_a_slice_of_the_stored_tensor(reference):
    with safe_open(reference.folder / "model.safetensors", "pt") as stored:
        for kind, name in (("gate_up_proj", "gate_up"), ("down_proj", "down")):
            fused = stored.get_slice(f"model.layers.3.feed_forward.experts.{kind}")
            for expert in range(4):
                assert torch.equal(reference.read(f"layers.3.experts.{expert}.{name}"), fused[expert])


def test_every_other_tensor_is_the_stored_one(reference):
    stored = load_file(reference.folder / "model.safetensors")
    pairs = {
        "embed": "model.embed_tokens.weight",
        "norm": "model.norm.weight",
        "lm_head": "lm_head.weight",
        "layers.2.attn_norm": "model.layers.2.input_layernorm.weight",
        "layers.2.ffn_norm": "model.layers.2.post_attention_layernorm.weight",
        "layers.2.attn.q": "model.layers.2.self_attn.q_proj.weight",
        "layers.2.attn.o": "model.layers.2.self_attn.o_proj.weight",
        "layers.2.dense.up": "model.layers.2.feed_forward.up_proj.weight",
        "layers.3.gate": "model.layers.3.feed_forward.router.weight",
        "layers.3.shared.down": "model.layers.3.feed_forward.shared_expert.down_proj.weight",
    }
    for ours, theirs in pairs.items():
        assert torch.equal(reference.read(ours), stored[theirs])
        assert reference.shape(ours) == tuple(stored[theirs].shape)


def test_separate_experts_read_like_fused_ones(tmp_path, reference):
    assert_same_tensors(open_checkpoint(write_hf(tmp_path, with_separate_experts(hf_tensors()))), reference)


def test_shards_read_like_one_file(tmp_path, reference):
    assert_same_tensors(open_checkpoint(write_hf_shards(tmp_path, hf_tensors(), 3)), reference)


def test_the_multimodal_prefix_is_dropped_and_vision_ignored(tmp_path, reference, caplog):
    tensors = {f"language_model.{name}": tensor for name, tensor in hf_tensors().items()}
    vision = {
        "vision_model.class_embedding": torch.zeros(8),
        "multi_modal_projector.linear_1.weight": torch.zeros(2, 2),
    }
    write_hf(tmp_path, tensors | vision)
    with caplog.at_level(logging.WARNING):
        found = open_checkpoint(tmp_path)
    assert_same_tensors(found, reference)
    assert not caplog.records


def test_unknown_tensors_are_ignored_with_one_warning(tmp_path, caplog):
    extra = {"model.layers.0.mystery": torch.zeros(3), "model.layers.1.mystery": torch.zeros(3)}
    write_hf(tmp_path, hf_tensors() | extra)
    with caplog.at_level(logging.WARNING):
        open_checkpoint(tmp_path)
    assert [record.getMessage().count("mystery") for record in caplog.records] == [2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_as_stored_and_converted_on_demand(tmp_path, dtype):
    checkpoint = open_checkpoint(write_hf(tmp_path, with_separate_experts(hf_tensors(dtype=dtype))))
    stored = hf_tensors(dtype=dtype)["model.layers.1.feed_forward.experts.gate_up_proj"][2]
    name = "layers.1.experts.2.gate_up"
    assert checkpoint.config.dtype == str(dtype).removeprefix("torch.")
    assert torch.equal(checkpoint.read(name), stored)
    assert checkpoint.read(name).dtype == dtype
    assert torch.equal(checkpoint.read(name, torch.float32), stored.float())
    assert checkpoint.num_bytes(name) == 32 * 48 * 2


def test_tied_embeddings_are_stored_and_counted_once(tmp_path):
    tensors = {name: tensor for name, tensor in hf_tensors().items() if name != "lm_head.weight"}
    checkpoint = open_checkpoint(write_hf(tmp_path, tensors, tie_word_embeddings=True))
    assert "lm_head" not in checkpoint.names
    assert torch.equal(checkpoint.read("lm_head"), checkpoint.read("embed"))
    assert checkpoint.total_bytes == sum(tensor.nbytes for tensor in tensors.values())


def test_reading_a_quarter_of_the_experts_reads_exactly_their_bytes(tmp_path):
    # 512 x 2048 fp32: large enough that a page or a neighbour read by mistake shows.
    tensors = hf_tensors() | {
        f"model.layers.{layer}.feed_forward.experts.{kind}": torch.zeros(shape)
        for layer in (1, 3)
        for kind, shape in (("gate_up_proj", (4, 32, 2048)), ("down_proj", (4, 1024, 32)))
    }
    shared = {name: torch.zeros(1024, 32) for name in tensors if "shared_expert" in name}
    tensors |= {name: t.T.contiguous() if "down" in name else t for name, t in shared.items()}
    checkpoint = open_checkpoint(write_hf(tmp_path, tensors, intermediate_size=1024))
    before, expected = os_bytes_read(), 2 * (32 * 2048 + 1024 * 32) * 4
    cost_of_looking = os_bytes_read() - before
    before = os_bytes_read()
    for layer in (1, 3):
        checkpoint.read(f"layers.{layer}.experts.2.gate_up")
        checkpoint.read(f"layers.{layer}.experts.2.down")
    assert checkpoint.bytes_read == expected == checkpoint.expert_bytes(2)
    assert abs(os_bytes_read() - before - cost_of_looking - expected) < 64


def test_opening_reads_no_weights(tmp_path):
    write_hf(tmp_path, hf_tensors() | {"model.embed_tokens.weight": torch.zeros(96, 32)})
    open_checkpoint(tmp_path)
    before = os_bytes_read()
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.bytes_read == 0
    assert os_bytes_read() - before < checkpoint.total_bytes / 4


def test_bytes_add_up_to_the_stored_tensors(reference):
    stored = load_file(reference.folder / "model.safetensors")
    experts = sum(tensor.nbytes for name, tensor in stored.items() if ".experts." in name)
    assert reference.total_bytes == sum(tensor.nbytes for tensor in stored.values())
    assert sum(reference.expert_bytes(expert) for expert in range(4)) == experts
    assert reference.router_bytes == reference.total_bytes - experts


def test_an_unknown_name_is_our_mistake(reference):
    with pytest.raises(KeyError, match=r"layers\.0\.gate"):
        reference.read("layers.0.gate")


def test_threads_read_side_by_side(tmp_path, reference):
    checkpoint = open_checkpoint(write_hf(tmp_path))
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(checkpoint.read, checkpoint.names * 4))
    for name, tensor in zip(checkpoint.names * 4, found, strict=True):
        assert torch.equal(tensor, reference.read(name))
    assert checkpoint.bytes_read == 4 * checkpoint.total_bytes


def test_the_fingerprint_is_equal_for_a_copy_and_in_another_process(tmp_path, reference):
    write_hf(tmp_path)
    command = (
        "import sys; from models.checkpoint import open_checkpoint; print(open_checkpoint(sys.argv[1]).fingerprint)"
    )
    answer = subprocess.run([sys.executable, "-c", command, tmp_path], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == reference.fingerprint


@pytest.mark.parametrize(
    "change", [{"tensors": hf_tensors(dtype=torch.bfloat16)}, {"rope_theta": 1.0}, {"eos_token_id": 3}]
)
def test_the_fingerprint_changes_with_config_and_tensors(tmp_path, reference, change):
    assert open_checkpoint(write_hf(tmp_path, **change)).fingerprint != reference.fingerprint


def test_a_llama4_saved_by_transformers_opens(tmp_path):
    config = Llama4TextConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=24,
        intermediate_size_mlp=40,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        interleave_moe_layer_step=2,
        attention_chunk_size=8,
    )
    model = Llama4ForCausalLM(config)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    checkpoint, layer = open_checkpoint(tmp_path), model.model.layers[3].feed_forward
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert checkpoint.total_bytes == sum(tensor.nbytes for tensor in model.state_dict().values())
    assert torch.equal(checkpoint.read("layers.3.experts.1.gate_up"), layer.experts.gate_up_proj[1])
    assert torch.equal(checkpoint.read("layers.3.shared.down"), layer.shared_expert.down_proj.weight)


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_dense_llama_saved_by_transformers_opens(tmp_path, is_tied):
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=is_tied,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert torch.equal(checkpoint.read("layers.1.dense.up"), model.model.layers[1].mlp.up_proj.weight)
    assert torch.equal(checkpoint.read("lm_head"), model.lm_head.weight)


@pytest.mark.parametrize("name", [*GOLDENS, "llama32"])
def test_every_golden_reads_all_of_its_language_model(shared_dir, name):
    folder = shared_dir / "goldens" / name
    checkpoint = open_checkpoint(folder)
    stored = load_file(folder / "model.safetensors")
    language = [t.nbytes for name, t in stored.items() if not name.startswith(("vision_", "multi_modal"))]
    for name in checkpoint.names:
        checkpoint.read(name)
    assert checkpoint.bytes_read == checkpoint.total_bytes == sum(language)


@pytest.mark.parametrize(
    ("preset", "text", "num_bytes", "router_bytes"),
    [
        # Text parameters x 2 bytes, and what a router holds.
        (SCOUT, SCOUT_TEXT, 2 * 107_769_861_120, 22_266_193_920),
        (MAVERICK, MAVERICK_TEXT, 2 * 400_711_848_960, 28_329_584_640),
    ],
    ids=["scout", "maverick"],
)
def test_a_release_of_real_size_opens_within_two_seconds(tmp_path, preset, text, num_bytes, router_bytes):
    write_sparse_release(tmp_path, preset, multimodal(text))
    start = time.monotonic()
    checkpoint = open_checkpoint(tmp_path)
    assert time.monotonic() - start < 2
    assert checkpoint.config == preset
    assert (checkpoint.total_bytes, checkpoint.router_bytes) == (num_bytes, router_bytes)


def test_one_expert_of_scout_is_two_ranges_of_252_megabytes(tmp_path):
    write_sparse_release(tmp_path, SCOUT, multimodal(SCOUT_TEXT))
    checkpoint = open_checkpoint(tmp_path)
    (gate_up,) = checkpoint.locate("layers.7.experts.5.gate_up")
    (next_one,) = checkpoint.locate("layers.7.experts.6.gate_up")
    (down,) = checkpoint.locate("layers.7.experts.5.down")
    assert gate_up.num_bytes == next_one.offset - gate_up.offset == 167_772_160
    assert down.num_bytes == 83_886_080
    assert gate_up.file.name == down.file.name == "layer-7.safetensors"


def test_the_config_says_what_the_files_hold(tmp_path):
    write_hf(tmp_path, hf_tensors(dtype=torch.bfloat16), torch_dtype="float32")
    assert open_checkpoint(tmp_path).config.dtype == "bfloat16"
