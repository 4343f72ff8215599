"""Front doors to test against: over a script for the protocols, over a real engine for the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import openai
import pytest

from cluster.limits import FrontDoorLimits
from cluster.local_router_client import LocalRouterClient
from cluster.served_model import PlannedCache, ServedModel
from cluster.service import InferenceService
from models.tokenizer import Tokenizer
from router.engine import Engine
from router.kv_cache.layout import CacheLayout
from router.limits import EngineLimits
from router.transport.local import LocalTransport
from tests.cluster.live_front_door import LiveFrontDoor
from tests.cluster.scripted_router import ScriptedRouter, says
from tests.tiny import TINY, tiny_decoder

CONTEXT_LENGTH = 128


def served_model(tokenizer: Tokenizer | None) -> ServedModel:
    config = TINY
    if tokenizer is not None:
        end_of_turn = tokenizer.special_id("<|eot|>")
        config = replace(TINY, vocab_size=tokenizer.vocab_size, eos_ids=(end_of_turn,))
    return ServedModel(
        name="tiny",
        config=config,
        context_length=CONTEXT_LENGTH,
        dtype="float32",
        fingerprint="f00d",
        cache=PlannedCache(CacheLayout(config, "float32", 4), 1_000_000),
        tokenizer=tokenizer,
    )


@pytest.fixture(scope="session")
def text_model(small_tokenizer) -> ServedModel:
    """A model that takes text."""
    return served_model(small_tokenizer)


@pytest.fixture(scope="session")
def id_model() -> ServedModel:
    """A model without a tokenizer."""
    return served_model(None)


@pytest.fixture
def router() -> ScriptedRouter:
    """A router that says "Hello" until a test gives it another script."""
    return ScriptedRouter(says(72, 101, 108, 108, 111))


@pytest.fixture
def door(router, text_model) -> Iterator[LiveFrontDoor]:
    """A front door before the scripted router, for a model that takes text."""
    limits = FrontDoorLimits(max_body_bytes=100_000, max_sequences=32, health_timeout_s=20)
    with LiveFrontDoor(InferenceService(text_model, router, limits)) as live:
        yield live


@pytest.fixture
def client(door) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, talking to that door."""
    with openai_client(door) as opened:
        yield opened


@contextmanager
def serve_engine(model: ServedModel) -> Iterator[LiveFrontDoor]:
    """Serve a tiny random model with a real engine."""
    decoder, weights = tiny_decoder(vocab_size=model.config.vocab_size, max_positions=model.context_length)
    limits = EngineLimits(context_length=model.context_length, kv_bytes=10_000_000, slots=4, step_tokens=16)
    engine = Engine(decoder, LocalTransport(weights.run_experts), limits)
    engine.start()
    with LiveFrontDoor(InferenceService(model, LocalRouterClient(engine))) as live:
        yield live
    engine.stop()


@pytest.fixture(scope="module")
def text_engine_door(text_model) -> Iterator[LiveFrontDoor]:
    """A front door before a real engine, for a model that takes text."""
    with serve_engine(text_model) as live:
        yield live


@pytest.fixture(scope="module")
def id_engine_door(id_model) -> Iterator[LiveFrontDoor]:
    """A front door before a real engine, for a model without a tokenizer."""
    with serve_engine(id_model) as live:
        yield live


def openai_client(door: LiveFrontDoor) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0, timeout=30)
