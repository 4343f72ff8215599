"""What /v1/completions reports of a checkpoint without a tokenizer, against transformers' fp32 outputs.

Tolerance 1e-3, as for the logits: see tests/parity/test_goldens.py.
"""

import pytest
import torch
from safetensors.torch import load_file

from cluster.local_router_client import LocalRouterClient
from cluster.served_model import load_served_model
from cluster.service import InferenceService
from models.checkpoint import open_checkpoint
from models.llama4.decoder import load_decoder
from router.engine import Engine
from router.limits import EngineLimits
from tests.cluster.conftest import openai_client
from tests.cluster.live_front_door import LiveFrontDoor
from tests.parity.transports import open_transport

TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def scout(shared_dir):
    """A client of the golden Scout model, and the golden outputs."""
    folder = shared_dir / "goldens" / "scout"
    checkpoint = open_checkpoint(folder)
    model = load_served_model(
        folder,
        checkpoint.config,
        name="scout",
        context_length=64,
        dtype="float32",
        fingerprint=checkpoint.fingerprint,
    )
    with open_transport(checkpoint, "local") as transport:
        decoder = load_decoder(checkpoint, dtype=torch.float32)
        engine = Engine(decoder, transport, EngineLimits(context_length=64, kv_bytes=10_000_000, step_tokens=16))
        engine.start()
        with LiveFrontDoor(InferenceService(model, LocalRouterClient(engine))) as door, openai_client(door) as client:
            yield client, load_file(folder / "golden.safetensors")
        engine.stop()


def test_greedy_tokens_and_their_logprobs_equal_the_reference(scout):
    client, golden = scout
    answer = client.completions.create(
        model="scout",
        prompt=golden["greedy_prompt"][0].tolist(),
        max_tokens=30,
        temperature=0,
        logprobs=5,
        extra_body={"ignore_eos": True},
    )
    [choice] = answer.choices
    assert choice.token_ids == golden["greedy_tokens"][0].tolist()
    expected = golden["greedy_step_logits"][0].log_softmax(-1)
    top = expected.topk(5)
    for step, reported in enumerate(choice.logprobs.top_logprobs):
        names = [f"token_id:{token}" for token in top.indices[step].tolist()]
        assert list(reported) == names
        assert list(reported.values()) == pytest.approx(top.values[step].tolist(), abs=TOLERANCE)
    best = expected.max(dim=-1).values.tolist()
    assert choice.logprobs.token_logprobs == pytest.approx(best, abs=TOLERANCE)


def test_the_echoed_prompts_logprobs_equal_the_reference(scout):
    client, golden = scout
    prompts = golden["input_ids"]
    answer = client.completions.create(
        model="scout", prompt=prompts.tolist(), max_tokens=1, temperature=0, echo=True, logprobs=0
    )
    for choice, ids, logits in zip(answer.choices, prompts, golden["logits_full"], strict=True):
        expected = logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]
        found = choice.logprobs.token_logprobs[1 : len(ids)]
        assert found == pytest.approx(expected.tolist(), abs=TOLERANCE)
        assert choice.logprobs.tokens[: len(ids)] == [f"token_id:{token}" for token in ids.tolist()]
