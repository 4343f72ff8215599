import base64
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.special_tokens import special_names
from models.tokenizer import Tokenizer, load_tokenizer, split_long
from models.vocabulary import LLAMA3_PATTERN, LLAMA4_PATTERN, Vocabulary
from protos.errors import BadCheckpoint, InvalidRequest

BYTES_ONLY = {bytes([value]): value for value in range(256)}
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SPECIAL_NAMES = [*special_names("llama4", 2048), *special_names("llama", 256)]


@pytest.fixture(scope="module", params=["llama4", "llama3"])
def real(request):
    """Both real tokenizers by the names the vectors give them."""
    return request.param, request.getfixturevalue(f"{request.param}_tokenizer")


def test_every_reference_vector_encodes_and_decodes(real, shared_dir):
    name, tokenizer = real
    vectors = json.loads((shared_dir / "goldens" / "tokenizer_vectors.json").read_text())

    assert len(vectors) == 31
    for vector in vectors:
        assert tokenizer.encode(vector["text"]) == vector[name], vector["text"]
        assert tokenizer.decode(vector[name]) == vector["text"]


def test_the_vectors_of_llama_cpp_encode_alike(llama3_tokenizer, shared_dir):
    folder = shared_dir / "data" / "llamacpp_vocab"
    texts = (folder / "ggml-vocab-llama-bpe.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (folder / "ggml-vocab-llama-bpe.gguf.out").read_text().splitlines()

    expected = [[int(token_id) for token_id in line.split()] for line in lines]
    assert len(expected) >= 46
    assert [llama3_tokenizer.encode(text) for text in texts[: len(expected)]] == expected


def test_special_names_in_a_text_are_ordinary_text(real):
    _, tokenizer = real
    text = " ".join(SPECIAL_NAMES)

    ids = tokenizer.encode(text)

    assert not {*ids} & {tokenizer.special_id(name) for name in SPECIAL_NAMES}
    assert tokenizer.decode(ids) == text


@given(st.lists(st.sampled_from(SPECIAL_NAMES) | TEXT).map("".join))
def test_no_text_ever_encodes_to_a_special_token(small_tokenizer, text):
    ids = small_tokenizer.encode(text)

    assert all(token_id < small_tokenizer.special_id("<|begin_of_text|>") for token_id in ids)
    assert small_tokenizer.decode(ids, skip_special=False) == text


@pytest.mark.parametrize("pattern", [LLAMA3_PATTERN, LLAMA4_PATTERN])
@given(text=TEXT)
def test_patterns_leave_no_character_out(pattern, text):
    tokenizer = Tokenizer(Vocabulary(ranks=BYTES_ONLY, specials={}, pattern=pattern), 256)

    assert tokenizer.encode(text) == list(text.encode())


def test_only_llama4_keeps_slashes_with_the_line_break_before_them():
    ranks = BYTES_ONLY | {b".\n": 256, b".\n/": 257}
    llama4, llama3 = (
        Tokenizer(Vocabulary(ranks=ranks, specials={}, pattern=pattern), 258)
        for pattern in (LLAMA4_PATTERN, LLAMA3_PATTERN)
    )

    assert llama4.encode(".\n/") == [257]
    assert llama3.encode(".\n/") == [256, ord("/")]


def test_a_lone_surrogate_encodes_as_the_replacement_character(small_tokenizer):
    assert small_tokenizer.encode("a\ud800b") == small_tokenizer.encode("a\ufffdb")


def test_decode_leaves_special_tokens_out_or_names_them(small_tokenizer):
    ids = [small_tokenizer.bos_id, *small_tokenizer.encode("Hello"), small_tokenizer.special_id("<|eot|>")]

    assert small_tokenizer.decode(ids) == "Hello"
    assert small_tokenizer.decode(ids, skip_special=False) == "<|begin_of_text|>Hello<|eot|>"
    assert small_tokenizer.token_bytes(small_tokenizer.bos_id) == b""


def test_decode_replaces_half_a_character(small_tokenizer):
    assert small_tokenizer.decode(small_tokenizer.encode("é👩")[:-1]) == "é\ufffd"


def test_ids_without_a_token_have_no_text():
    tokenizer = Tokenizer(Vocabulary(ranks=BYTES_ONLY, specials={}, pattern=LLAMA4_PATTERN), 300)

    assert tokenizer.decode([97, 299, 98], skip_special=False) == "ab"
    assert tokenizer.bos_id is None
    assert tokenizer.special_id("<|eot|>") is None


@pytest.mark.parametrize("token_id", [-1, 311])
def test_ids_out_of_range_are_refused(small_tokenizer, token_id):
    assert small_tokenizer.vocab_size == 311

    with pytest.raises(InvalidRequest, match=f"expected token ids from 0 to 310, found {token_id}"):
        small_tokenizer.decode([97, token_id])


def split_by_the_letter(text, max_chars, max_run):
    """The rule of the cuts, one character at a time."""
    parts = []
    for start in range(0, len(text), max_chars):
        part, run = "", 0
        for character in text[start : start + max_chars]:
            run = run + 1 if part and part[-1].isspace() == character.isspace() else 1
            if run > max_run:
                parts.append(part)
                part, run = "", 1
            part += character
        parts.append(part)
    return parts


@given(st.text("ab \n\u3000\x1c", max_size=60), st.integers(1, 20), st.integers(1, 6))
@settings(max_examples=300)
def test_long_texts_are_cut_where_the_reference_cuts(text, max_chars, max_run):
    assert list(split_long(text, max_chars, max_run)) == split_by_the_letter(text, max_chars, max_run)


def test_long_texts_encode_as_their_parts(small_tokenizer):
    text = "the " * 90_000 + "the" * 23_334 + " " * 60_000

    parts = list(split_long(text))

    assert [len(part) for part in parts] == [385_000, 15_000, 25_000, 5_002 + 25_000, 25_000, 10_000]
    assert "".join(parts) == text
    assert small_tokenizer.encode(text) == [token_id for part in parts for token_id in small_tokenizer.encode(part)]
    assert small_tokenizer.decode(small_tokenizer.encode(text)) == text


def test_a_folder_without_a_tokenizer_has_none(tmp_path, make_config):
    assert load_tokenizer(tmp_path, make_config("llama4", 512)) is None


def test_a_corrupt_tokenizer_is_refused(tmp_path, make_config):
    (tmp_path / "tokenizer.model").write_bytes(b"AA== 0\nAQ== 2\n")

    with pytest.raises(BadCheckpoint, match=r"tokenizer\.model:2: expected a token of rank 1"):
        load_tokenizer(tmp_path, make_config("llama4", 512))


def test_a_folder_with_a_small_vocabulary_loads(tmp_path, make_config):
    lines = [base64.b64encode(token) + b" %d" % rank for token, rank in BYTES_ONLY.items()]
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join(lines))

    tokenizer = load_tokenizer(tmp_path, make_config("llama4", 288))

    assert tokenizer.encode("<|eot|>") == list(b"<|eot|>")
    assert (tokenizer.bos_id, tokenizer.special_id("<|eot|>"), tokenizer.vocab_size) == (256, 264, 288)


def test_tokenizers_load_without_torch():
    code = "import sys, models.tokenizer, models.chat; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
