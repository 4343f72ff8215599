import base64

import pytest

from models.rank_file import read_rank_file
from protos.errors import BadCheckpoint

BYTES = [bytes([value]) for value in range(256)]


def lines(tokens):
    return [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]


def write(folder, content):
    path = folder / "tokenizer.model"
    path.write_bytes(content if isinstance(content, bytes) else b"\n".join(content) + b"\n")
    return path


def test_ranks_are_read_and_special_tokens_follow_them(tmp_path, make_config):
    path = write(tmp_path, lines([*BYTES, b"th", b"the"]))

    vocabulary = read_rank_file(path, make_config("llama4", 290))

    assert vocabulary.ranks[b"the"] == 257
    assert len(vocabulary.specials) == 32
    assert vocabulary.specials["<|begin_of_text|>"] == 258
    assert vocabulary.specials["<|eot|>"] == 266


def test_a_vocabulary_that_the_ranks_fill_has_no_special_tokens(tmp_path, make_config):
    assert read_rank_file(write(tmp_path, lines(BYTES)), make_config("llama", 256)).specials == {}


def test_windows_line_ends_and_blank_lines_are_read(tmp_path, make_config):
    path = write(tmp_path, b"\r\n".join(lines(BYTES)) + b"\r\n\r\n")

    assert len(read_rank_file(path, make_config("llama4", 300)).ranks) == 256


@pytest.mark.parametrize(
    "bad",
    [b"dGg=", b"dGg= x", b"dG!g= 256", b"dGg 256", b"\xff\xfe 256", b"dGg= 257", b"dGg= 255", b"dGg= 256 1", b"= 256"],
)
def test_a_malformed_line_is_refused_with_file_and_line(tmp_path, make_config, bad):
    path = write(tmp_path, [*lines(BYTES), bad])

    with pytest.raises(BadCheckpoint, match=r"tokenizer\.model:257: expected"):
        read_rank_file(path, make_config("llama4", 300))


def test_a_repeated_token_is_refused_with_file_and_line(tmp_path, make_config):
    path = write(tmp_path, lines([*BYTES, b"a"]))

    with pytest.raises(BadCheckpoint, match=r"tokenizer\.model:257: .* found b'a' again, the token of rank 97"):
        read_rank_file(path, make_config("llama4", 300))


def test_more_ranks_than_the_vocabulary_are_refused_with_file_and_line(tmp_path, make_config):
    path = write(tmp_path, lines([*BYTES, b"th", b"the"]))

    with pytest.raises(BadCheckpoint, match=r"tokenizer\.model:258: expected at most 257 ranks"):
        read_rank_file(path, make_config("llama4", 257))


@pytest.mark.parametrize("content", [b"", lines(BYTES[:200])])
def test_a_cut_file_is_refused_because_bytes_have_no_token(tmp_path, make_config, content):
    path = write(tmp_path, content)

    with pytest.raises(BadCheckpoint, match="each of the 256 bytes"):
        read_rank_file(path, make_config("llama4", 300))


def test_a_sentencepiece_model_is_refused_by_name(tmp_path, make_config):
    path = write(tmp_path, b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02\n\x0c\n\x03<s>")

    with pytest.raises(BadCheckpoint, match="SentencePiece models of Llama 1 and 2 are not supported"):
        read_rank_file(path, make_config("llama", 32_000))


def test_an_unreadable_file_is_refused(tmp_path, make_config):
    (tmp_path / "tokenizer.model").mkdir()

    with pytest.raises(BadCheckpoint, match="expected a readable file"):
        read_rank_file(tmp_path / "tokenizer.model", make_config("llama", 300))
