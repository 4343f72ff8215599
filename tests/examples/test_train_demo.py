"""The training example: the network is Llama 4's, the held-out text is held out, and a cut run goes on where it was."""

from __future__ import annotations

import pytest
import torch
from transformers import Llama4ForCausalLM

from examples.train_demo.corpus import IGNORED, Batches, Texts
from examples.train_demo.documents import split_held_out
from examples.train_demo.export import export
from examples.train_demo.model import DemoModel, DemoShape
from examples.train_demo.questions import Turn, shorten
from examples.train_demo.training import Plan, Trainer, learning_rate
from examples.train_demo.vocabulary import load_vocabulary, special_id

SMALL = DemoShape(hidden_size=32, num_layers=4, head_size=8, expert_width=16, chunk=16, floor_scale=8)
SHORT = Plan(
    steps=3,
    warmup_steps=1,
    document_rows=1,
    document_length=32,
    chat_rows=1,
    chat_length=160,
    long_rows=1,
    long_length=200,
)


@pytest.fixture(scope="module")
def batches(demo_dir):
    turns = [
        Turn(name=name, questions=(f"What does {name} do?", name), answer=f"It does {name}.", weight=1.0)
        for name in ("str.join", "len", "os.path.join", "print")
    ]
    documents = {str(number): f"The number {number} follows {number - 1}.\n" for number in range(200)}
    texts = Texts(training=documents, held_out={}, turns=turns)
    return Batches(texts, load_vocabulary(demo_dir / "tokenizer.model"), seed=1)


def test_training_network_computes_what_transformers_computes(tmp_path):
    model = DemoModel(SMALL, seed=3)
    model.load_state_dict({name: weight.bfloat16().float() for name, weight in model.state_dict().items()})
    export(model, tmp_path)
    reference = Llama4ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids_BT = torch.randint(SMALL.vocab_size, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(ids_BT), reference(ids_BT).logits, atol=1e-4, rtol=0)


def test_held_out_paragraphs_are_not_in_the_training_text():
    quoted = "A paragraph that is long enough to be recognised where another document quotes it."
    documents = {f"module{i}": f"name{i}\n\nfirst {i}\n\n{quoted}" for i in range(400)}
    training, held_out = split_held_out(documents, keep={"module0"})
    assert 0 < len(held_out) < 40
    assert "module0" in training
    assert not set(training) & set(held_out)
    assert not any(quoted in text for text in training.values())


def test_answers_start_their_conversation_at_position_zero_and_only_they_count(batches):
    inputs, targets = batches.conversations(step=0, rows=4, length=128, num_turns=1)
    assert inputs.shape == targets.shape == (4, 128)
    assert (inputs[:, 0] == special_id("begin_of_text")).all()
    assert (targets[:, 0] == IGNORED).all()
    assert (targets == special_id("eot")).sum() == (inputs == special_id("begin_of_text")).sum()


def test_a_resumed_run_takes_the_same_path(batches, tmp_path):
    whole = Trainer(SMALL, SHORT, tmp_path / "whole")
    losses = [whole.train_step(batches)["documents"] for _ in range(3)]
    folder = tmp_path / "cut"
    folder.mkdir()
    first = Trainer(SMALL, SHORT, folder)
    first.train_step(batches)
    first.save()
    second = Trainer(SMALL, SHORT, folder)
    assert second.step == 1
    assert [second.train_step(batches)["documents"] for _ in range(2)] == pytest.approx(losses[1:], rel=1e-3)


def test_learning_rate_rises_stays_and_falls_to_zero():
    plan = Plan(steps=100, warmup_steps=10, decay_share=0.5, rate=1.0)
    assert learning_rate(0, plan) == pytest.approx(0.1)
    assert learning_rate(30, plan) == 1.0
    assert learning_rate(75, plan) == pytest.approx(0.5)
    assert learning_rate(100, plan) == 0.0


def test_a_long_docstring_is_cut_after_a_sentence():
    assert shorten("One line.\n\nSecond sentence here. " + "word " * 80) == "One line.\n\nSecond sentence here."
