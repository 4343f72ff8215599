"""Checkpoints in Meta's layout: torch files, split over any number of shards, read by byte range like the rest."""

import io
import logging
import os
import pickle
import re
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.checkpoint import open_checkpoint
from models.checkpoint.torch_archive import read_torch_archive
from protos.errors import BadCheckpoint
from tests.models.checkpoint_files import META_DENSE_WIDTH, hf_tensors, meta_shards, write_hf, write_json, write_meta

TENSORS = hf_tensors(dense_width=META_DENSE_WIDTH)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The same weights in Hugging Face's layout."""
    return open_checkpoint(write_hf(tmp_path_factory.mktemp("hf"), TENSORS, intermediate_size_mlp=META_DENSE_WIDTH))


def assert_same_tensors(found, expected):
    assert found.names == expected.names
    for name in expected.names:
        assert torch.equal(found.read(name), expected.read(name)), name


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A small torch file on its own."""
    file = tmp_path_factory.mktemp("archive") / "consolidated.00.pth"
    rows = torch.zeros(6, 4)
    torch.save(
        {"rows": rows, "view": rows[2:, :2], "norm": torch.ones(4).half(), "_extra_state": io.BytesIO(b"x")}, file
    )
    return file


@pytest.mark.parametrize("num_shards", [1, 2])
def test_shards_read_like_hugging_faces_file(tmp_path, reference, num_shards):
    found = open_checkpoint(write_meta(tmp_path, meta_shards(TENSORS, num_shards)))
    assert_same_tensors(found, reference)
    assert found.bytes_read == found.total_bytes == reference.total_bytes


@pytest.mark.parametrize("num_shards", [1, 2])
def test_one_expert_of_all_shards_reads_its_bytes_only(tmp_path, num_shards):
    found = open_checkpoint(write_meta(tmp_path, meta_shards(TENSORS, num_shards)))
    found.read("layers.1.experts.3.gate_up")
    assert found.bytes_read == 32 * 48 * 4
    found.read("layers.1.experts.3.down")
    assert found.bytes_read == (32 * 48 + 24 * 32) * 4
    assert len(found.locate("layers.1.experts.3.gate_up")) == 2 * num_shards


@pytest.mark.parametrize("name", ["scout", "maverick", "top2"])
def test_the_goldens_two_layouts_hold_the_same_model(shared_dir, name):
    theirs, ours = (
        open_checkpoint(shared_dir / "goldens" / name),
        open_checkpoint(shared_dir / "goldens" / name / "meta"),
    )
    assert ours.config == theirs.config
    assert_same_tensors(ours, theirs)
    assert ours.bytes_read == theirs.bytes_read


def test_views_of_one_storage_are_read_row_by_row(tmp_path, reference):
    (shard,) = meta_shards(TENSORS, 1)
    fused = TENSORS["model.layers.1.feed_forward.experts.gate_up_proj"].flatten(0, 1)
    prefix = "layers.1.feed_forward.experts"
    shard[f"{prefix}.moe_w_in_eD_F"], shard[f"{prefix}.moe_w_swiglu_eD_F"] = fused.chunk(2, dim=1)
    found = open_checkpoint(write_meta(tmp_path, [shard]))
    assert torch.equal(found.read("layers.1.experts.2.gate_up"), reference.read("layers.1.experts.2.gate_up"))
    assert found.bytes_read == 32 * 48 * 4


def test_rows_of_unpadded_vocabularies_are_counted_in_the_weights(tmp_path):
    found = open_checkpoint(write_meta(tmp_path, meta_shards(TENSORS, 2), vocab_size=90))
    assert found.config.vocab_size == 96
    assert found.shape("lm_head") == (96, 32)


def test_unknown_tensors_are_ignored_with_one_warning(tmp_path, caplog):
    (shard,) = meta_shards(TENSORS, 1)
    with caplog.at_level(logging.WARNING):
        open_checkpoint(write_meta(tmp_path / "known", [shard]))
        assert not caplog.records
        open_checkpoint(write_meta(tmp_path / "unknown", [shard | {"mystery": torch.zeros(2)}]))
    assert ["mystery" in record.getMessage() for record in caplog.records] == [True]


def dense_shards(num_shards, *, splits_embedding_columns):
    """Return a two-layer dense Llama as shards, and its tensors under our names."""
    generator = torch.Generator().manual_seed(3)
    ours = {"embed": torch.randn(96, 32, generator=generator), "lm_head": torch.randn(96, 32, generator=generator)}
    ours["norm"] = torch.randn(32, generator=generator)
    split = {
        "embed": ("tok_embeddings.weight", 1 if splits_embedding_columns else 0),
        "lm_head": ("output.weight", 0),
        "norm": ("norm.weight", None),
    }
    for layer in range(2):
        shapes = {
            "attn.q": ((32, 32), "attention.wq.weight", 0),
            "attn.k": ((16, 32), "attention.wk.weight", 0),
            "attn.v": ((16, 32), "attention.wv.weight", 0),
            "attn.o": ((32, 32), "attention.wo.weight", 1),
            "attn_norm": ((32,), "attention_norm.weight", None),
            "ffn_norm": ((32,), "ffn_norm.weight", None),
            "dense.gate": ((88, 32), "feed_forward.w1.weight", 0),
            "dense.down": ((32, 88), "feed_forward.w2.weight", 1),
            "dense.up": ((88, 32), "feed_forward.w3.weight", 0),
        }
        for name, (shape, theirs, dim) in shapes.items():
            ours[f"layers.{layer}.{name}"] = torch.randn(shape, generator=generator)
            split[f"layers.{layer}.{name}"] = (f"layers.{layer}.{theirs}", dim)
    shards = [
        {
            theirs: (ours[name] if dim is None else ours[name].chunk(num_shards, dim)[shard]).clone()
            for name, (theirs, dim) in split.items()
        }
        for shard in range(num_shards)
    ]
    return shards, ours


def write_dense(folder, shards):
    params = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 8, "vocab_size": -1}
    write_json(folder / "params.json", params)
    for number, shard in enumerate(shards):
        torch.save(shard, folder / f"consolidated.{number:02}.pth")
    return folder


@pytest.mark.parametrize(
    ("num_shards", "splits_embedding_columns"), [(1, False), (2, False), (2, True)], ids=["one", "llama3", "llama2"]
)
def test_dense_llama_shards_are_put_together(tmp_path, num_shards, splits_embedding_columns):
    shards, expected = dense_shards(num_shards, splits_embedding_columns=splits_embedding_columns)
    found = open_checkpoint(write_dense(tmp_path, shards))
    assert set(found.names) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found.read(name), tensor), name


def test_a_meta_file_without_output_has_tied_embeddings(tmp_path):
    (shard,), _ = dense_shards(1, splits_embedding_columns=False)
    del shard["output.weight"]
    found = open_checkpoint(write_dense(tmp_path, [shard]))
    assert found.config.tie_embeddings
    assert torch.equal(found.read("lm_head"), shard["tok_embeddings.weight"])


def test_offsets_agree_with_torchs_own_reader(tmp_path):
    file = write_meta(tmp_path, meta_shards(TENSORS, 2)) / "consolidated.01.pth"
    content = file.read_bytes()
    with torch.serialization.safe_globals([io.BytesIO]):
        expected = torch.load(file, weights_only=True)
    found = read_torch_archive(file)
    assert set(found) == {name for name, value in expected.items() if isinstance(value, torch.Tensor)}
    for name, stored in found.items():
        data = bytearray(content[stored.offset : stored.offset + stored.num_bytes])
        assert torch.equal(torch.frombuffer(data, dtype=stored.torch_dtype).reshape(stored.shape), expected[name])


class Payload:
    """Runs a command when a careless reader loads it."""

    def __init__(self, marker):
        self._marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self._marker),)


def test_a_file_with_code_is_refused_and_the_code_not_run(tmp_path):
    (shard,) = meta_shards(TENSORS, 1)
    write_meta(tmp_path, [shard | {"payload": Payload(tmp_path / "ran")}])
    with pytest.raises(BadCheckpoint, match=r"consolidated\.00\.pth: .*posix\.mkdir"):
        open_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def rewrite(file, change, *, compression=zipfile.ZIP_STORED):
    """Write an archive again with its records changed by a function of (name, content); None drops a record."""
    with zipfile.ZipFile(file) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in records.items():
            changed = change(name.partition("/")[2], content)
            if changed is not None:
                archive.writestr(name, changed)


def cut(file):
    os.truncate(file, file.stat().st_size - 1000)


def cut_hard(file):
    os.truncate(file, 100)


def compress(file):
    rewrite(file, lambda _, content: content, compression=zipfile.ZIP_DEFLATED)


def drop_record(file):
    rewrite(file, lambda name, content: None if name == "data/0" else content)


def shorten_record(file):
    rewrite(file, lambda name, content: content[:-4] if name == "data/0" else content)


def drop_pickle(file):
    rewrite(file, lambda name, content: None if name == "data.pkl" else content)


def cut_pickle(file):
    rewrite(file, lambda name, content: content[:50] if name == "data.pkl" else content)


def pickle_a_list(file):
    rewrite(file, lambda name, content: pickle.dumps([1], 2) if name == "data.pkl" else content)


def number_a_value_by_billions(file):
    rewrite(file, lambda name, content: b"\x80\x02}r\xff\xff\xff\xff." if name == "data.pkl" else content)


def hold_a_terabyte(file):
    pickled = b"\x80\x02}" + pickle.BYTEARRAY8 + (2**40).to_bytes(8, "little") + b"0."
    rewrite(file, lambda name, content: pickled if name == "data.pkl" else content)


def change_a_tensor(file):
    """Give the first tensor, once it is made and checked, other fields."""
    state = b"(X\x01\x00\x00\x00xK\x00))X\x03\x00\x00\x00F32lb"
    made = re.compile(rb"tq.Rq.", re.DOTALL)
    rewrite(file, lambda name, content: made.sub(rb"\g<0>" + state, content, 1) if name == "data.pkl" else content)


def no_archive(file):
    file.write_bytes(pickle.dumps({"tok_embeddings.weight": 1}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "complete zip archive"),
        (cut_hard, "complete zip archive"),
        (no_archive, "complete zip archive"),
        (compress, "uncompressed record"),
        (drop_record, "expected the record .*data/0, found none"),
        (shorten_record, "data/0: expected 12288 bytes, found 12284"),
        (drop_pickle, "one data.pkl"),
        (cut_pickle, "pickle of named tensors"),
        (pickle_a_list, "dictionary of named tensors, found a list"),
        (number_a_value_by_billions, "expected the tensor"),
        (hold_a_terabyte, "named tensors only, found a byte array"),
        (change_a_tensor, "named tensors only, found a tensor that is changed"),
    ],
)
def test_a_damaged_torch_file_is_refused_at_open(tmp_path, damage, words):
    write_meta(tmp_path, meta_shards(TENSORS, 1))
    damage(tmp_path / "consolidated.00.pth")
    with pytest.raises(BadCheckpoint, match=rf"consolidated\.00\.pth.*{words}"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("layers.0.attention.wo.weight", None, "expected the tensor layers.0.attention.wo.weight"),
        ("layers.1.feed_forward.router_DE", None, "expected the tensor layers.1.feed_forward.router_DE"),
        ("layers.1.feed_forward.router_DE", torch.zeros(4, 32), r"expected shape \[32, 4\].*found \[4, 32\]"),
        ("layers.0.feed_forward.mlp.fc1_weight", torch.zeros(80, 32), r"expected shape \[96, 32\].*found \[80, 32\]"),
        ("norm.weight", torch.zeros(32, dtype=torch.int64), "norm.weight: expected a dtype .* found I64"),
        ("norm.weight", torch.zeros(()), r"norm.weight: expected shape \[32\].*found \[\]"),
        ("output.weight", torch.zeros(()), r"tok_embeddings.weight|output.weight"),
        ("tok_embeddings.weight", torch.zeros(90, 32), r"expected shape \[96, 32\].*found \[90, 32\]"),
        ("layers.0.attention.wo.weight", torch.zeros(32, 32).T, "transposed view"),
        ("layers.0.attention.wo.weight", torch.zeros(32, 16), "expected 2 shards, .* found 1"),
    ],
)
def test_a_wrong_tensor_is_refused_at_open(tmp_path, name, value, words):
    (shard,) = meta_shards(TENSORS, 1)
    changed = {key: tensor for key, tensor in (shard | {name: value}).items() if tensor is not None}
    with pytest.raises(BadCheckpoint, match=words):
        open_checkpoint(write_meta(tmp_path, [changed]))


def test_a_missing_shard_is_named(tmp_path):
    write_meta(tmp_path, meta_shards(TENSORS, 2))
    (tmp_path / "consolidated.00.pth").rename(tmp_path / "consolidated.02.pth")
    with pytest.raises(BadCheckpoint, match=r"consolidated\.00\.pth: expected shards 0 to 2, found no such file"):
        open_checkpoint(tmp_path)
    (tmp_path / "consolidated.02.pth").rename(tmp_path / "consolidated.00.pth")
    (tmp_path / "consolidated.01.pth").unlink()
    with pytest.raises(BadCheckpoint, match="expected 2 shards"):
        open_checkpoint(tmp_path)


def test_params_without_weights_are_refused(tmp_path):
    with pytest.raises(BadCheckpoint, match=r"expected consolidated\.00\.pth"):
        open_checkpoint(write_meta(tmp_path, []))


@settings(max_examples=300)
@given(changes=st.dictionaries(st.integers(0, 1000), st.integers(0, 255), min_size=1, max_size=4))
def test_a_pickle_with_flipped_bytes_is_read_or_refused(archive, changes):
    def flip(name, content):
        if name != "data.pkl":
            return content
        flipped = bytearray(content)
        for position, value in changes.items():
            flipped[position % len(content)] = value
        return bytes(flipped)

    content = archive.read_bytes()
    rewrite(archive, flip)
    try:
        assert all(stored.offset < len(content) for stored in read_torch_archive(archive).values())
    except BadCheckpoint:
        pass
    finally:
        archive.write_bytes(content)
