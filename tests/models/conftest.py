"""Configurations and the real tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from models.config import ModelConfig
from models.tokenizer import Tokenizer, load_tokenizer

MakeConfig = Callable[[str, int], ModelConfig]


@pytest.fixture(scope="session")
def make_config() -> MakeConfig:
    """Make the configuration of a one-layer dense model, given its family and vocab_size."""

    def make(family: str, vocab_size: int) -> ModelConfig:
        return ModelConfig(
            family="llama4" if family == "llama4" else "llama",
            num_layers=1,
            hidden_size=8,
            num_heads=2,
            num_kv_heads=1,
            head_size=4,
            vocab_size=vocab_size,
            expert_width=0,
            dense_width=8,
            num_experts=0,
            experts_per_token=0,
            moe_layers=(),
            nope_layers=(),
            attention_chunk=None,
            rope_theta=10_000.0,
            rope_scaling=None,
            rope_interleaved=True,
            qk_norm=False,
            attn_temperature=False,
            temperature_floor=8192.0,
            temperature_scale=0.1,
            norm_eps=1e-5,
            max_positions=64,
            tie_embeddings=False,
            bos_id=None,
            eos_ids=(),
            pad_id=None,
            dtype="float32",
        )

    return make


def _load(folder: Path, config: ModelConfig) -> Tokenizer:
    tokenizer = load_tokenizer(folder, config)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="session")
def llama4_tokenizer(shared_dir: Path, make_config: MakeConfig) -> Tokenizer:
    """Scout's and Maverick's tokenizer."""
    return _load(shared_dir / "data" / "llama4", make_config("llama4", 202_048))


@pytest.fixture(scope="session")
def llama3_tokenizer(shared_dir: Path, make_config: MakeConfig) -> Tokenizer:
    """The tokenizer of Llama 3, 3.1, 3.2 and 3.3."""
    return _load(shared_dir / "data" / "llama3", make_config("llama", 128_256))
