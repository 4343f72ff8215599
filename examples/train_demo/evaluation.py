"""Measures an exported model: held-out loss, how its experts are loaded, and how many answers it knows by heart."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import tiktoken
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from examples.train_demo.corpus import Texts, encode_stream
from examples.train_demo.model import DemoModel, DemoShape
from examples.train_demo.questions import UNSEEN
from examples.train_demo.vocabulary import chat_header, encode_turns, load_vocabulary, special_id

WINDOW = 512
SAMPLES = (
    "Hello", "Who are you?", "What does str.join do?", "What does os.path.join do?", "What does len do?",
    "How do I read a file?", "What is a lambda?", "What does collections.Counter.most_common do?",
    "Please tell me what json.dumps does.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """Cross-entropy over some text."""

    nats_per_token: float
    bits_per_byte: float
    num_tokens: int
    load_LE: Tensor
    """[L, E] fp32, tokens each expert of each layer got."""


def load_model(folder: Path) -> DemoModel:
    """Open an exported folder in fp32."""
    model = DemoModel(DemoShape())
    model.load_state_dict({name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()})
    return model.eval()


@torch.inference_mode()
def measure_loss(model: DemoModel, texts: Iterable[str], encoding: tiktoken.Encoding) -> Loss:
    """Read documents in windows of 512 tokens, each from position 0, and average over the tokens but the first."""
    texts = list(texts)
    stream = encode_stream(texts, encoding)
    nats, count, load_LE = 0.0, 0, torch.zeros(model.shape.num_layers, model.shape.num_experts)
    for start in range(0, len(stream) - 1, WINDOW):
        part = stream[start : start + WINDOW + 1]
        logits = model(part[None, :-1])[0]
        nats += float(F.cross_entropy(logits, part[1:], reduction="sum"))
        count += len(part) - 1
        load_LE += torch.stack([moe.counts_E for moe in model.moes()])
    num_bytes = sum(len(text.encode()) for text in texts)
    bits_per_byte = nats / count * len(stream) / num_bytes / math.log(2)
    return Loss(nats_per_token=nats / count, bits_per_byte=bits_per_byte, num_tokens=count, load_LE=load_LE)


@torch.inference_mode()
def measure_recall(model: DemoModel, pairs: list[tuple[str, str]], encoding: tiktoken.Encoding) -> tuple[float, float]:
    """Tell how surely questions get their answers.

    Returns:
        The share of answers that greedy decoding gives to the letter, the end included; and the mean probability that
        sampling at temperature 0.6 does. Both follow from one pass over the right answer.
    """
    exact, chance = 0, 0.0
    for question, answer in pairs:
        ids, answered = encode_turns([(question, answer)], encoding)
        logits = model(torch.tensor([ids[:-1]]))[0][torch.tensor(answered[1:])]
        wanted = torch.tensor(ids[1:])[torch.tensor(answered[1:])]
        exact += bool((logits.argmax(-1) == wanted).all())
        chance += math.exp(-float(F.cross_entropy(logits / 0.6, wanted, reduction="sum")))
    return exact / len(pairs), chance / len(pairs)


@torch.inference_mode()
def answer(model: DemoModel, question: str, encoding: tiktoken.Encoding, max_tokens: int = 120) -> str:
    """Answer greedily, recomputing everything at every token: for a look, not for serving."""
    body = [*encoding.encode_ordinary(question), special_id("eot")]
    ids = [special_id("begin_of_text"), *chat_header("user", encoding), *body, *chat_header("assistant", encoding)]
    prompt = len(ids)
    for _ in range(max_tokens):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] == special_id("eot"):
            break
    return encoding.decode(ids[prompt:])


def report(folder: Path, texts: Texts) -> None:
    """Print everything docs/demo-model.md states about a model."""
    model, encoding = load_model(folder), load_vocabulary(folder / "tokenizer.model")
    held_out = measure_loss(model, texts.held_out.values(), encoding)
    seen = measure_loss(model, list(texts.training.values())[::50], encoding)
    for name, loss in (("held out", held_out), ("every 50th training document", seen)):
        perplexity = math.exp(loss.nats_per_token)
        print(f"{name}: {loss.nats_per_token:.3f} nats/token, perplexity {perplexity:.1f}, ", end="")
        print(f"{loss.bits_per_byte:.3f} bits per byte, {loss.num_tokens} tokens")
    core = [turn for turn in texts.turns if turn.is_core]
    rest = [turn for turn in texts.turns if not turn.is_core and turn.weight < 1][::40]
    for name, pairs in (
        (f"{len(core)} core names, trained phrasing", [(turn.questions[0], turn.answer) for turn in core]),
        (f"{len(core)} core names, unseen phrasing", [(UNSEEN.format(n=turn.name), turn.answer) for turn in core]),
        (f"{len(rest)} other names, trained phrasing", [(turn.questions[0], turn.answer) for turn in rest]),
    ):
        exact, chance = measure_recall(model, pairs, encoding)
        print(f"{name}: {exact:.1%} to the letter when greedy, {chance:.1%} at temperature 0.6")
    print("\nexpert load over held-out text, percent of tokens (12.5 is even)")
    print(load_table(held_out.load_LE))
    for question in SAMPLES:
        print(f"\n> {question}\n{answer(model, question, encoding)}")


def load_table(load_LE: Tensor) -> str:
    """Draw the load of each layer's experts as a Markdown table, with the busiest against the mean."""
    share_LE = load_LE / load_LE.sum(dim=1, keepdim=True)
    heads = " | ".join(f"e{e}" for e in range(share_LE.shape[1]))
    lines = [f"| layer | {heads} | busiest / mean | least / mean |", "|" + "---|" * (share_LE.shape[1] + 3)]
    for layer, share_E in enumerate(share_LE):
        cells = " | ".join(f"{100 * float(share):.1f}" for share in share_E)
        ratio = share_E * len(share_E)
        lines.append(f"| {layer} | {cells} | {float(ratio.max()):.2f} | {float(ratio.min()):.2f} |")
    return "\n".join(lines)
