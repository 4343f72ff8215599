import json

import pytest
from tokenizers import AddedToken, Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HfTokenizer

from models.special_tokens import special_names
from models.tokenizer import load_tokenizer
from models.vocabulary import LLAMA4_PATTERN
from protos.errors import BadCheckpoint

TEXTS = [
    "",
    "Hello World, stop the thing",
    "the théâtre 👩 世界\n\n  12345 isn't ab abc",
    "\x00\x7f\xa0\xad\u0100",
    "bcabcabthethe\tothering",
]
MERGES = "th he the er in ing re or ld Wo lo ello Hello ti st sto stop ab abc bc"


def byte_characters():
    """How the file spells each byte, asked of the library where text can hold that byte."""
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    characters = {value: spell(chr(value))[0][0] for value in range(0x80)}
    characters |= {value: spell(chr(value))[0][0][-1] for value in range(0x80, 0xC0)}  # the second byte of two
    characters |= {value: chr(value) for value in range(0xC0, 0x100)}
    assert {*characters.values()} == {*pre_tokenizers.ByteLevel.alphabet()}
    return characters


def make_hf(ranks, special_ids):
    """Build what transformers' converter makes of a tiktoken file: every way to cut a token is a merge."""
    spell = byte_characters()
    words = {token: "".join(spell[value] for value in token) for token in ranks}
    merges = [
        (words[token[:cut]], words[token[cut:]])
        for token in sorted(ranks, key=ranks.get)
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    hf = HfTokenizer(models.BPE({words[token]: rank for token, rank in ranks.items()}, merges, ignore_merges=True))
    hf.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA4_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    hf.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special_ids])
    assert {name: hf.token_to_id(name) for name in special_ids} == special_ids
    return hf


@pytest.fixture(scope="module")
def ranks():
    tokens = [bytes([value]) for value in range(256)] + [merge.encode() for merge in MERGES.split()]
    return {token: rank for rank, token in enumerate([*tokens, b" t", b" the", "é".encode(), "👩".encode()[:2]])}


@pytest.fixture(scope="module")
def hf(ranks):
    return make_hf(ranks, {name: len(ranks) + index for index, name in enumerate(special_names("llama4", 32))})


@pytest.fixture
def data(hf):
    return json.loads(hf.to_str())


def write(folder, data):
    (folder / "tokenizer.json").write_text(data if isinstance(data, str) else json.dumps(data))
    return folder


def test_text_encodes_as_with_the_library_that_wrote_the_file(tmp_path, hf, make_config):
    tokenizer = load_tokenizer(write(tmp_path, hf.to_str()), make_config("llama4", hf.get_vocab_size()))

    for text in TEXTS:
        assert tokenizer.encode(text) == hf.encode(text, add_special_tokens=False).ids, text
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_added_tokens_are_the_special_tokens_and_stay_out_of_text(tmp_path, hf, make_config):
    tokenizer = load_tokenizer(write(tmp_path, hf.to_str()), make_config("llama4", hf.get_vocab_size()))

    eot = hf.token_to_id("<|eot|>")
    assert tokenizer.special_id("<|eot|>") == eot
    assert hf.encode("<|eot|>").ids == [eot]
    assert eot not in tokenizer.encode("<|eot|>")


def test_merges_written_as_strings_are_read(tmp_path, data, make_config, hf):
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]

    tokenizer = load_tokenizer(write(tmp_path, data), make_config("llama4", 512))

    assert tokenizer.encode(TEXTS[1]) == hf.encode(TEXTS[1]).ids


def test_an_added_token_past_the_vocabulary_is_left_out(tmp_path, data, make_config, hf):
    size = hf.get_vocab_size()

    tokenizer = load_tokenizer(write(tmp_path, data), make_config("llama4", size - 1))

    assert tokenizer.special_id(special_names("llama4", 32)[-1]) is None
    assert tokenizer.vocab_size == size - 1


def test_tokenizer_model_comes_first(tmp_path, hf, make_config):
    write(tmp_path, hf.to_str())
    (tmp_path / "tokenizer.model").write_text("nonsense")

    with pytest.raises(BadCheckpoint, match=r"tokenizer\.model:1"):
        load_tokenizer(tmp_path, make_config("llama4", 512))


def test_a_vocabulary_trained_with_fewer_merges_is_refused(tmp_path, make_config):
    hf = HfTokenizer(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA4_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    hf.train_from_iterator(
        TEXTS * 50, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )

    with pytest.raises(BadCheckpoint, match="merges that are not all pairs of tokens"):
        load_tokenizer(write(tmp_path, hf.to_str()), make_config("llama4", 512))


def swap_merges(data):
    merges = data["model"]["merges"]
    merges[0], merges[-1] = merges[-1], merges[0]


CORRUPTIONS = {
    "merges that are not all pairs": swap_merges,
    "KeyError: 'model'": lambda data: data.pop("model"),
    "ValueError: a pipeline of": lambda data: data["model"].update(type="Unigram"),
    "a second split or a normalizer": lambda data: data.update(normalizer={"type": "NFC"}),
    "TypeError": lambda data: data.update(pre_tokenizer=None),
    "without a token for each of the 256 bytes": lambda data: data["model"]["vocab"].pop("Ā"),
    "KeyError: ' '": lambda data: data["model"]["vocab"].update({"a b": 999}),
    "repeated token ids": lambda data: data["added_tokens"][0].update(id=5),
    "ValueError: invalid literal": lambda data: data["model"]["vocab"].update(Ā="zero"),
}


@pytest.mark.parametrize("found", CORRUPTIONS)
def test_a_file_that_tiktoken_cannot_reproduce_is_refused(tmp_path, data, make_config, found):
    CORRUPTIONS[found](data)

    with pytest.raises(BadCheckpoint) as raised:
        load_tokenizer(write(tmp_path, data), make_config("llama4", 512))

    assert found in raised.value.message
    assert "tokenizer.json: expected" in raised.value.message


def test_a_file_that_is_not_json_is_refused(tmp_path, make_config):
    with pytest.raises(BadCheckpoint, match=r"tokenizer\.json: expected a byte-level BPE .* JSONDecodeError"):
        load_tokenizer(write(tmp_path, "{"), make_config("llama4", 512))


def test_tokens_past_the_vocabulary_are_refused(tmp_path, data, make_config):
    with pytest.raises(BadCheckpoint, match="expected token ids below 270"):
        load_tokenizer(write(tmp_path, data), make_config("llama4", 270))
