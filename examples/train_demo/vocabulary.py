"""The tokenizer: byte-pair merges learnt from the corpus, written as a tiktoken file, with Llama 4's special tokens."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

import tiktoken
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from models.special_tokens import special_names
from models.vocabulary import LLAMA4_PATTERN

VOCAB_SIZE = 4096
SPECIALS = special_names("llama4", 32)
"""The first of Llama 4's special tokens; their ids follow the ranks."""
NUM_RANKS = VOCAB_SIZE - len(SPECIALS)


def special_id(name: str) -> int:
    """Give the id of a special token named without its bars: `eot`."""
    return NUM_RANKS + SPECIALS.index(f"<|{name}|>")


def train_vocabulary(texts: Iterable[str], file: Path) -> None:
    """Learn the merges and write them as `base64 rank` lines.

    Args:
        texts: the corpus.
        file: where to write, usually `tokenizer.model`.

    Cost: about a second for two megabytes.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA4_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_RANKS, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    bytes_of = _byte_letters()
    ranks = [bytes(bytes_of[letter] for letter in token) for token in tokens]
    if len(set(ranks)) != NUM_RANKS:
        raise ValueError(f"expected {NUM_RANKS} distinct tokens, found {len(set(ranks))}: give it more text")
    file.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(ranks)))


def load_vocabulary(file: Path) -> tiktoken.Encoding:
    """Open a file that `train_vocabulary` wrote. Encode text with `encode_ordinary`: specials are added by id only."""
    lines = (line.split() for line in file.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    specials = {name: NUM_RANKS + i for i, name in enumerate(SPECIALS)}
    return tiktoken.Encoding("herd-demo", pat_str=LLAMA4_PATTERN, mergeable_ranks=ranks, special_tokens=specials)


def encode_turns(turns: list[tuple[str, str]], encoding: tiktoken.Encoding) -> tuple[list[int], list[bool]]:
    """Write a conversation in the Llama 4 chat format.

    Returns:
        The ids, and for each whether it is part of an answer, the closing `<|eot|>` included.
    """
    ids, answered = [special_id("begin_of_text")], [False]
    for turn in turns:
        for role, content in zip(("user", "assistant"), turn, strict=True):
            head = chat_header(role, encoding)
            body = [*encoding.encode_ordinary(content), special_id("eot")]
            ids += head + body
            answered += [False] * len(head) + [role == "assistant"] * len(body)
    return ids, answered


def chat_header(role: str, encoding: tiktoken.Encoding) -> list[int]:
    """Write what opens a message: `<|header_start|>{role}<|header_end|>` and an empty line."""
    role_ids = encoding.encode_ordinary(role)
    return [special_id("header_start"), *role_ids, special_id("header_end"), *encoding.encode_ordinary("\n\n")]


def _byte_letters() -> dict[str, int]:
    """Map the letters that byte-level BPE writes for bytes back to the bytes: printable ones stand for themselves."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(other)}
