"""The training loop: AdamW, warm-up, a constant rate and a long decay; a checkpoint every few minutes."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.train_demo.corpus import IGNORED, Batches
from examples.train_demo.model import DemoModel, DemoShape


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What one training run does."""

    steps: int = 2200
    """Optimiser steps of the whole run."""
    seed: int = 2
    """Seed of the weights and of every batch."""
    document_rows: int = 4
    """Document windows per step."""
    document_length: int = 512
    """Tokens per document window."""
    chat_rows: int = 20
    """Rows of single questions per step."""
    chat_length: int = 128
    """Tokens per row of single questions: the first chunk of local attention."""
    long_rows: int = 2
    """Rows of conversations with two to four turns per step."""
    long_length: int = 320
    """Tokens per row of those."""
    rate: float = 2.5e-3
    """Peak learning rate of AdamW."""
    warmup_steps: int = 100
    decay_share: float = 0.5
    """Share of the steps, at the end, in which the rate falls linearly to zero."""
    weight_decay: float = 0.05
    balance: float = 0.015
    """Weight of each layer's load-balancing loss; 0 is off."""
    log_every: int = 20
    """Steps between two lines of progress."""
    save_seconds: float = 150.0
    """Wall time between two checkpoints."""


def learning_rate(step: int, plan: Plan) -> float:
    """Give the rate of one step: a linear rise, a plateau, a linear fall to zero."""
    fall = max(1, int(plan.steps * plan.decay_share))
    return plan.rate * min(1.0, (step + 1) / plan.warmup_steps, max(0.0, (plan.steps - step) / fall))


class Trainer:
    """A model, its optimiser and the step they have reached; kept in a folder so that a run can be cut and resumed."""

    def __init__(self, shape: DemoShape, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        model = DemoModel(shape, plan.seed)
        # Forward and backward run in bfloat16, three times as fast here; the optimiser's small steps need fp32.
        self.weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        self.model = model.to(torch.bfloat16)
        matrices = [weight for weight in self.weights.values() if weight.dim() > 1]
        vectors = [weight for weight in self.weights.values() if weight.dim() == 1]
        groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.97), fused=True)
        self.step = 0
        self.seconds = 0.0
        self.tokens = 0
        if self.checkpoint.exists():
            self._load()

    @property
    def checkpoint(self) -> Path:
        """File that holds the state of a run."""
        return self.folder / "checkpoint.pt"

    def run(self, batches: Batches) -> None:
        """Train until the plan's last step, printing the curve and appending it to `curve.jsonl`."""
        saved = last = time.monotonic()
        sums: dict[str, float] = {}
        while self.step < self.plan.steps:
            for name, value in self.train_step(batches).items():
                sums[name] = sums.get(name, 0.0) + value / self.plan.log_every
            now = time.monotonic()
            self.seconds, last = self.seconds + now - last, now
            if self.step % self.plan.log_every == 0:
                self._report(sums)
                sums = {}
            if now - saved > self.plan.save_seconds:
                self.save()
                saved = now
        self.save()

    def train_step(self, batches: Batches) -> dict[str, float]:
        """Take one step on documents and conversations together; returns the losses in nats per token."""
        plan = self.plan
        rate = learning_rate(self.step, plan)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        chats = [
            batches.conversations(self.step, plan.chat_rows, plan.chat_length, num_turns=1),
            batches.conversations(self.step, plan.long_rows, plan.long_length, num_turns=4),
        ]
        documents = batches.documents(self.step, plan.document_rows, plan.document_length)
        answered = sum(int((targets != IGNORED).sum()) for _, targets in chats)
        chat = sum(self._backward(*part, share=int((part[1] != IGNORED).sum()) / answered) for part in chats)
        document = self._backward(*documents, share=1.0)
        norm = self._update()
        self.step += 1
        self.tokens += documents[0].numel() + sum(inputs.numel() for inputs, _ in chats)
        skew = max(float(moe.counts_E.max() / moe.counts_E.mean()) for moe in self.model.moes())
        return {"documents": document, "chat": chat, "norm": norm, "skew": skew}

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "weights": self.weights,
            "optimizer": self.optimizer.state_dict(),
            "progress": {"step": self.step, "seconds": self.seconds, "tokens": self.tokens},
        }
        draft = self.checkpoint.with_suffix(".part")
        torch.save(state, draft)
        draft.replace(self.checkpoint)

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True)
        for name, weight in self.weights.items():
            weight.copy_(state["weights"][name])
        self.model.load_state_dict(self.weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.tokens = (state["progress"][key] for key in ("step", "seconds", "tokens"))

    @torch.no_grad()
    def _update(self) -> float:
        """Step the fp32 weights by the bfloat16 gradients; returns the gradients' norm before clipping."""
        parameters = dict(self.model.named_parameters())
        for name, weight in self.weights.items():
            grad = parameters[name].grad
            weight.grad = torch.zeros_like(weight) if grad is None else grad.float()
            parameters[name].grad = None
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimizer.step()
        for name, weight in self.weights.items():
            parameters[name].copy_(weight)
        return float(norm)

    def _backward(self, inputs: Tensor, targets: Tensor, share: float) -> float:
        wanted = targets != IGNORED
        loss = share * F.cross_entropy(self.model(inputs, wanted).float(), targets[wanted])
        balance = sum((moe.balance_loss for moe in self.model.moes()), torch.zeros(()))
        (loss + self.plan.balance * share * balance).backward()
        return float(loss.detach())

    def _report(self, means: dict[str, float]) -> None:
        row = {"step": self.step, "seconds": round(self.seconds), "tokens": self.tokens}
        row |= {name: round(value, 4) for name, value in means.items()}  # type: ignore[misc]
        left = self.seconds / self.step * (self.plan.steps - self.step)
        losses = f"documents {means['documents']:.3f}  chat {means['chat']:.3f} nats/token"
        speed = f"{self.tokens / max(self.seconds, 1e-9):,.0f} tokens/s  {left / 60:.0f} min left"
        skew = f"busiest expert {means['skew']:.2f}x"
        print(f"step {self.step:5d} of {self.plan.steps}  {losses}  {skew}  {speed}", flush=True)
        if not math.isfinite(means["documents"] + means["chat"]):
            raise FloatingPointError(f"expected finite losses, found {means}: lower the rate")
        with (self.folder / "curve.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


def describe(plan: Plan) -> str:
    """Write the plan on one line, for the log."""
    return ", ".join(f"{name} {value}" for name, value in asdict(plan).items())
