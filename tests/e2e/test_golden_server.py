"""A model without tokenizer, its experts in two processes: exact numbers over the whole way, and a clean end."""

from __future__ import annotations

import pytest
import torch
from openai import OpenAI
from safetensors.torch import load_file

from tests.e2e.reflected_client import ReflectedClient, to_dict
from tests.e2e.served import served

pytestmark = pytest.mark.timeout(600)

TOLERANCE = 1e-3
GENERATE = "herd.inference.v1.InferenceService/Generate"


@pytest.fixture(scope="module")
def golden(shared_dir):
    return load_file(shared_dir / "goldens" / "scout" / "golden.safetensors")


@pytest.fixture(scope="module")
def herd(shared_dir):
    """`herd serve` with the golden model."""
    with served(model=str(shared_dir / "goldens" / "scout")) as application:
        yield application


def test_served_logprobs_equal_the_golden(golden, herd):
    prompt_ids = golden["greedy_prompt"][0].tolist()
    tokens_T = golden["greedy_tokens"][0]
    expected_TV = golden["greedy_step_logits"][0].log_softmax(-1)
    with OpenAI(base_url=f"{herd.base_url}/v1", api_key="none", max_retries=0) as client:
        answer = client.completions.create(
            model="scout",
            prompt=prompt_ids,
            max_tokens=len(tokens_T),
            temperature=0,
            logprobs=1,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )
    found_T = torch.tensor(answer.choices[0].logprobs.token_logprobs)
    assert torch.allclose(found_T, expected_TV.gather(1, tokens_T[:, None])[:, 0], atol=TOLERANCE, rtol=0)


def test_served_prompt_logprobs_and_tokens_equal_the_golden(golden, herd):
    ids_T = golden["input_ids"][0]
    expected_TV = golden["logits_full"][0].log_softmax(-1)
    with ReflectedClient(herd.grpc_address) as client:
        scored = client.stream(
            GENERATE, token_ids={"ids": ids_T.tolist()}, prompt_logprobs=0, stopping={"max_tokens": 1}
        )
        reports = to_dict(next(scored))["started"]["prompt_logprobs"]
        list(scored)
        greedy = client.stream(
            GENERATE,
            token_ids={"ids": golden["greedy_prompt"][0].tolist()},
            sampling={"temperature": 0},
            stopping={"max_tokens": 30, "ignore_eos": True},
        )
        tokens = [token for each in greedy for token in to_dict(each).get("delta", {}).get("token_ids", [])]
    found_T = torch.tensor([report["logprob"] for report in reports[1:]])
    assert torch.allclose(found_T, expected_TV[:-1].gather(1, ids_T[1:, None])[:, 0], atol=TOLERANCE, rtol=0)
    assert tokens == golden["greedy_tokens"][0].tolist()


def test_interrupt_lets_a_stream_finish_and_leaves_no_process(herd):
    with ReflectedClient(herd.grpc_address) as client:
        call = client.stream(GENERATE, token_ids={"ids": [5]}, stopping={"max_tokens": 200, "ignore_eos": True})
        next(call)
        herd.interrupt()
        *_, finished = [to_dict(each) for each in call]
    assert finished["finished"]["usage"]["completion_tokens"] == 200
    assert herd.wait() == 0
    assert herd.leftovers() == []
    assert herd.output.splitlines()[-1].startswith("ending")
