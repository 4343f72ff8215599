"""The demo model that ships in models/demo: small, whole, and worth talking to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, Llama4ForCausalLM

from models.chat import render_chat
from models.chat_message import ChatMessage
from models.checkpoint import open_checkpoint
from models.tokenizer import Tokenizer, load_tokenizer

MOST_BYTES = 24_000_000
QUESTIONS = {
    "Hello": "Python",
    "What does str.join do?": "Concatenate any number of strings.",
    "What does os.path.join do?": "Join two or more pathname components",
    "What does len do?": "Return the number of items in a container.",
}


@pytest.fixture(scope="module")
def tokenizer(demo_dir: Path) -> Tokenizer:
    found = load_tokenizer(demo_dir, open_checkpoint(demo_dir).config)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def reference(demo_dir: Path) -> Llama4ForCausalLM:
    return Llama4ForCausalLM.from_pretrained(demo_dir, dtype=torch.float32).eval()


def test_demo_folder_is_at_most_24_megabytes(demo_dir):
    assert sum(file.stat().st_size for file in demo_dir.rglob("*") if file.is_file()) <= MOST_BYTES


def test_demo_config_is_a_small_llama4_with_every_kind_of_layer(demo_dir):
    config = open_checkpoint(demo_dir).config
    assert config.family == "llama4"
    assert config.num_experts >= 8
    assert config.experts_per_token == 1
    assert config.moe_layers == tuple(range(config.num_layers))
    assert config.nope_layers == tuple(range(3, config.num_layers, 4))
    assert config.attention_chunk is not None
    assert config.attention_chunk < config.max_positions


def test_demo_config_opens_in_transformers(demo_dir):
    config = AutoConfig.from_pretrained(demo_dir)
    assert config.model_type == "llama4_text"
    assert config.no_rope_layers == [1, 1, 1, 0, 1, 1, 1, 0]


def test_demo_generation_stops_at_the_end_of_a_turn(demo_dir, tokenizer):
    generation = json.loads((demo_dir / "generation_config.json").read_text())
    stops = [tokenizer.special_id(name) for name in ("<|eot|>", "<|end_of_text|>", "<|eom|>")]
    assert generation["eos_token_id"] == stops
    assert set(open_checkpoint(demo_dir).config.eos_ids) == set(stops)


@pytest.mark.parametrize(
    "text", ["What does str.join do?", "x = {'é': [1, 2.5]}\n\n\tpass", "日本語 👩‍🚀", "<|eot|>", "", "\x00\xff"]
)
def test_demo_tokenizer_gives_a_text_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(token_id < tokenizer.special_id("<|begin_of_text|>") for token_id in ids)


def test_demo_vocabulary_fills_the_embedding(demo_dir, tokenizer):
    num_ranks = len((demo_dir / "tokenizer.model").read_bytes().splitlines())
    assert tokenizer.special_id("<|begin_of_text|>") == num_ranks
    assert open_checkpoint(demo_dir).config.vocab_size == num_ranks + 32


@pytest.mark.parametrize(("question", "expected"), QUESTIONS.items())
def test_demo_answers_in_transformers(reference, tokenizer, question, expected):
    prompt = render_chat([ChatMessage(role="user", content=question)], tokenizer)
    ids = reference.generate(torch.tensor([prompt]), max_new_tokens=120, do_sample=False)[0, len(prompt) :].tolist()
    assert expected in tokenizer.decode(ids)
    assert ids[-1] == tokenizer.special_id("<|eot|>")
