"""Damaged checkpoints are refused when they are opened, by file and tensor, and never end in a surprise."""

import json
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from models.checkpoint import open_checkpoint
from protos.errors import BadCheckpoint, StartupError
from tests.models.checkpoint_files import (
    hf_tensors,
    meta_shards,
    read_header,
    write_hf,
    write_hf_shards,
    write_json,
    write_meta,
    write_safetensors,
)

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
EXPERTS = "model.layers.1.feed_forward.experts.gate_up_proj"
NORM = "model.norm.weight"


def with_entry(name, **changes):
    """Return a damage that changes one tensor's entry in the header."""

    def damage(folder):
        header, data = read_header(folder / FILE)
        header[name] |= changes
        write_safetensors(folder / FILE, header, len(data))

    return damage


def with_header(header):
    """Return a damage that replaces the header."""
    return lambda folder: write_safetensors(folder / FILE, header, 64)


def with_tensor(name, tensor):
    """Return a damage that replaces a tensor, or drops it."""

    def damage(folder):
        tensors = {key: value for key, value in (hf_tensors() | {name: tensor}).items() if value is not None}
        save_file(tensors, folder / FILE)

    return damage


def cut(num_bytes):
    """Return a damage that cuts the file's end off."""
    return lambda folder: os.truncate(folder / FILE, (folder / FILE).stat().st_size - num_bytes)


def cut_to(num_bytes):
    """Return a damage that leaves so much of the file."""
    return lambda folder: os.truncate(folder / FILE, num_bytes)


def append(folder):
    with (folder / FILE).open("ab") as stream:
        stream.write(b"more")


def swap_entries(folder):
    """Let two tensors claim the same bytes."""
    header, data = read_header(folder / FILE)
    queries = [name for name in header if name.endswith("q_proj.weight")]
    header[queries[0]]["data_offsets"] = header[queries[1]]["data_offsets"]
    write_safetensors(folder / FILE, header, len(data))


def lie_about_length(folder):
    with (folder / FILE).open("r+b") as stream:
        stream.write((2**63).to_bytes(8, "little"))


def twice_the_same_key(folder):
    header, data = read_header(folder / FILE)
    text = json.dumps(header).replace("model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj")
    write_safetensors(folder / FILE, text.encode(), len(data))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut(1), "expected its bytes to end at"),
        (cut(20_000), "expected its bytes to end at"),
        (cut_to(3), "expected a header"),
        (cut_to(500), "expected a header of"),
        (cut_to(0), "expected a header"),
        (append, "expected .* bytes, as its header says"),
        (lie_about_length, "expected a header of 9223372036854775808 bytes"),
        (with_header(b"\x80not json"), "expected a JSON object as header"),
        (with_header(b"[" * 50_000), "nested too deeply"),
        (with_header([1, 2]), "a list instead of an object"),
        (with_header({"x": 5}), "x: expected an object with dtype"),
        (twice_the_same_key, "occurs twice"),
        (with_entry(NORM, shape=[float("nan")]), "NaN is not a JSON number"),
        (with_entry(NORM, data_offsets=[0, float("inf")]), "Infinity is not a JSON number"),
        (with_entry(NORM, shape=[-32]), rf"{NORM}: expected a list of extents"),
        (with_entry(NORM, shape=[32.0]), rf"{NORM}: expected a list of extents"),
        (with_entry(NORM, shape="32"), rf"{NORM}: expected a list of extents"),
        (with_entry(NORM, shape=[33]), rf"{NORM}: expected 132 bytes for shape \[33\] of F32"),
        (with_entry(NORM, dtype="F16"), rf"{NORM}: expected 64 bytes"),
        (with_entry(NORM, dtype="F31"), rf"{NORM}: expected a dtype of .* found 'F31'"),
        (with_entry(NORM, dtype=None), rf"{NORM}: expected a dtype"),
        (with_entry(NORM, data_offsets=[0]), rf"{NORM}: expected \[begin, end\]"),
        (with_entry(NORM, data_offsets=[10**9, 10**9 + 128]), rf"{NORM}: expected to begin at byte"),
        (with_entry(NORM, data_offsets=[-128, 0]), rf"{NORM}: expected \[begin, end\]"),
        (swap_entries, r"self_attn\..*: expected to begin at byte"),
        (with_tensor(NORM, None), f"expected the tensor {NORM}, found none"),
        (with_tensor(NORM, torch.zeros(33)), rf"{NORM}: expected shape \[32\], .* found \[33\]"),
        (with_tensor(NORM, torch.zeros(32, dtype=torch.int32)), rf"{NORM}: expected a dtype of .* found I32"),
        (with_tensor(EXPERTS, torch.zeros(3, 32, 48)), rf"{EXPERTS}: expected shape \[4, 32, 48\]"),
        (with_tensor(EXPERTS, torch.zeros(4, 48, 32)), rf"{EXPERTS}: expected shape \[4, 32, 48\]"),
        (with_tensor(EXPERTS, None), f"expected the tensor {EXPERTS}"),
        (
            with_tensor("lm_head.weight", torch.zeros(96, 32, dtype=torch.float8_e4m3fn)),
            r"expected the tensor lm_head\.weight_scale, found none",
        ),
    ],
)
def test_a_damaged_safetensors_file_is_refused_at_open(tmp_path, damage, words):
    write_hf(tmp_path)
    damage(tmp_path)
    with pytest.raises(BadCheckpoint, match=words) as refused:
        open_checkpoint(tmp_path)
    assert str(tmp_path) in refused.value.message


def test_a_header_longer_than_the_format_allows_is_refused_unread(tmp_path):
    write_hf(tmp_path)
    with (tmp_path / FILE).open("wb") as stream:
        stream.write((100_000_001).to_bytes(8, "little"))
        stream.truncate(200_000_000)
    with pytest.raises(BadCheckpoint, match="expected a header of at most 100000000 bytes, found 100000001"):
        open_checkpoint(tmp_path)


def drop_shard(folder):
    (folder / "model-00002-of-00003.safetensors").unlink()


def cut_shard(folder):
    file = folder / "model-00002-of-00003.safetensors"
    os.truncate(file, file.stat().st_size - 1)


def drop_index(folder):
    (folder / INDEX).unlink()


def with_index(**changes):
    """Return a damage that changes the index."""
    return lambda folder: write_json(folder / INDEX, json.loads((folder / INDEX).read_text()) | changes)


def with_place(name, file):
    """Return a damage that sends a tensor to another file."""

    def damage(folder):
        weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
        write_json(folder / INDEX, {"weight_map": weight_map | {name: file}})

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (drop_shard, r"model-00002-of-00003\.safetensors: expected the shard with .*weight, found no such file"),
        (cut_shard, r"model-00002-of-00003\.safetensors: model\..*: expected its bytes to end at"),
        (drop_index, rf"expected {FILE} or {INDEX}, found neither: download {INDEX}"),
        (with_index(metadata={"total_size": float("nan")}), "NaN is not a JSON number"),
        (with_index(weight_map={NORM: float("nan")}), "NaN is not a JSON number"),
        (with_index(weight_map=None), "expected weight_map to map tensors to files"),
        (with_index(weight_map=[]), "expected weight_map to map tensors to files"),
        (with_index(weight_map={NORM: 3}), rf"{NORM}: expected the name of a file in this folder, found 3"),
        (with_place(NORM, "../model.safetensors"), "expected the name of a file in this folder"),
        (with_place(NORM, "model-00009-of-00003.safetensors"), "model-00009-of-00003.* found no such file"),
        (with_place("model.mystery", "model-00001-of-00003.safetensors"), r"expected the tensor model\.mystery"),
    ],
)
def test_a_damaged_index_or_shard_is_refused_at_open(tmp_path, damage, words):
    write_hf_shards(tmp_path, hf_tensors(), 3)
    damage(tmp_path)
    with pytest.raises(BadCheckpoint, match=words):
        open_checkpoint(tmp_path)


def test_other_formats_are_named_in_the_answer(tmp_path):
    write_hf(tmp_path)
    (tmp_path / FILE).rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(BadCheckpoint, match="only safetensors files are read"):
        open_checkpoint(tmp_path)


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(StartupError, match=r"expected config\.json or params\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("layout", ["hf", "meta"])
def test_a_file_cut_short_after_opening_fails_the_read_by_name(tmp_path, layout):
    if layout == "hf":
        file = write_hf(tmp_path) / FILE
    else:
        file = write_meta(tmp_path, meta_shards(hf_tensors(dense_width=48), 1)) / "consolidated.00.pth"
    checkpoint = open_checkpoint(tmp_path)
    os.truncate(file, 2000)
    with pytest.raises(BadCheckpoint, match=r"expected norm to end at byte .*cut short after it was opened"):
        checkpoint.read("norm")
    file.unlink()
    with pytest.raises(BadCheckpoint, match="expected to read norm, found: No such file"):
        checkpoint.read("norm")


@pytest.fixture(scope="module")
def victims(tmp_path_factory):
    """A file of each layout, and where in it tensors are described: the part worth damaging."""
    hf = write_hf(tmp_path_factory.mktemp("hf")) / FILE
    meta = write_meta(tmp_path_factory.mktemp("meta"), meta_shards(hf_tensors(dense_width=48), 1))
    archive = meta / "consolidated.00.pth"
    directory = archive.read_bytes().index(b"PK\x01\x02")
    return {
        "header": (hf, 0, 8 + int.from_bytes(hf.read_bytes()[:8], "little")),
        "pickle": (archive, 0, archive.read_bytes().index(b"data/0")),
        "directory": (archive, directory, archive.stat().st_size),
    }


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), part=st.sampled_from(["header", "pickle", "directory"]))
def test_a_description_with_flipped_bytes_opens_or_is_refused(victims, data, part):
    file, begin, end = victims[part]
    content = file.read_bytes()
    changed = bytearray(content)
    for position in data.draw(st.lists(st.integers(begin, end - 1), min_size=1, max_size=4)):
        changed[position] = data.draw(st.integers(0, 255))
    file.write_bytes(changed)
    try:
        checkpoint = open_checkpoint(file.parent)
        assert all(checkpoint.read(name).shape == checkpoint.shape(name) for name in checkpoint.names)
    except StartupError:
        pass
    finally:
        file.write_bytes(content)
