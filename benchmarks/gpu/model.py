"""A whole model of random weights on one card: its memory, the context it has room for, tokens per second."""

from __future__ import annotations

import gc
import queue
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from benchmarks.gpu.card import Card, replay_seconds
from benchmarks.gpu.random_weights import random_decoder, random_experts
from models.config import ModelConfig
from models.gpu.weight import Form
from models.llama4.decoder import Decoder
from models.llama4.mlp import Mlp
from router.decode_graphs import RecordedStep
from router.engine import Engine
from router.limits import EngineLimits
from router.request import Ended, GenerationRequest, PromptDone, SamplingParams, TokenChosen
from router.transport.local import LocalTransport

_RESERVE_BYTES = 3 << 30
"""Of the card for what steps compute with, and for recorded steps."""
_REPLAYS = 20
_MOSTLY = 0.8
_WAIT_S = 300
_CPU_KV_BYTES = 8 << 20
_CONTEXT = 131_072
"""That one sequence may have while many are measured; how long it could be alone is reckoned apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on the card."""

    embeddings: int
    """And the LM head."""
    attention: int
    shared: int
    """Shared experts and dense layers."""
    routed: int
    kv: int
    recorded: int | None
    """What the engine took besides: recorded steps, tables, workspace; None: not known."""
    context_one: int
    """Tokens of the longest sequence that fits into `kv`."""

    def described(self) -> str:
        """Return this as a line."""
        parts = {name: getattr(self, name) for name in ("embeddings", "attention", "shared", "routed", "kv")}
        sizes = ", ".join(f"{name} {num_bytes / 1e9:.1f}" for name, num_bytes in parts.items())
        rest = "" if self.recorded is None else f", besides {self.recorded / 1e9:.1f}"
        return f"GB on the card: {sizes}{rest}; room for a sequence of {self.context_one} tokens"


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeRow:
    """So many sequences that generate at once."""

    sequences: int
    timed_sequences: int
    """Of the recorded step that is timed, the last one of its size: some had ended."""
    context: int
    """Tokens of each, in the mean of the recorded step that is timed."""
    step_ms: float
    """A recorded step on the card."""
    tokens_per_s: float
    """That the engine gives to those who asked, all together."""
    touched_gb: float
    """Weights, keys and values that a step reads."""
    part_of_roofline: float
    """Of what copying reads and writes, by the step alone."""
    engine_part_of_roofline: float
    """The same by the engine, sampling and the host's work included."""
    first_token_ms: float
    """From submission of the first prompt."""

    def described(self) -> str:
        """Return this as a line."""
        return (
            f"{self.sequences:>3} sequences of {self.context} tokens: step of {self.timed_sequences} "
            f"{self.step_ms:.2f} ms ({self.part_of_roofline:.0%} of the roofline of {self.touched_gb:.1f} GB), engine "
            f"{self.tokens_per_s:.0f} tokens/s ({self.engine_part_of_roofline:.0%}), first token after "
            f"{self.first_token_ms:.0f} ms"
        )


class MeasuredModel:
    """An engine over random weights, its experts beside it.

    Args:
        config: of the model.
        form: of all its matrices.
        slots: most sequences at once.
        device: where.
    """

    def __init__(self, config: ModelConfig, form: Form, slots: int, device: torch.device) -> None:
        self.config, self._device = config, device
        self.decoder: Decoder = random_decoder(config, form, device)
        self.experts: dict[int, dict[int, Mlp]] = random_experts(config, form, device)
        kv_bytes = _free_bytes(device) - _RESERVE_BYTES if device.type == "cuda" else _CPU_KV_BYTES
        limits = EngineLimits(
            context_length=config.max_positions,
            kv_bytes=kv_bytes,
            slots=slots,
            prefix_cache=False,
            step_tokens=4096,
            experts_in_process=True,
        )
        self._before = _used_bytes(device)
        self.engine = Engine(self.decoder, LocalTransport(self._run, self.experts.__getitem__), limits)
        self.engine.start()

    def _run(self, *arguments: object) -> torch.Tensor:
        raise AssertionError("experts beside the decoder are found by address")

    def memory(self) -> Memory:
        """Return what lies on the card."""
        layers, layout = self.decoder.layers, self.engine.layout
        plan = self.engine.limits.paging(layout)
        kv = layout.plan_bytes(plan)
        used, before = _used_bytes(self._device), self._before
        inner = [mlp.num_bytes for layer in layers for mlp in (layer.shared, layer.dense) if mlp is not None]
        attention = sum(layer.attention.num_bytes for layer in layers)
        single = EngineLimits(context_length=self.config.max_positions, kv_bytes=kv, slots=1).paging(layout)
        return Memory(
            embeddings=self.decoder.weight_bytes() - sum(layer.num_bytes for layer in layers),
            attention=attention,
            shared=sum(inner),
            routed=sum(mlp.num_bytes for experts in self.experts.values() for mlp in experts.values()),
            kv=kv,
            recorded=None if used is None or before is None else used - before - kv,
            context_one=layout.longest_sequence(single),
        )

    def measure(self, card: Card, sequences: Sequence[int], prompt: int, tokens: int) -> Iterator[DecodeRow]:
        """Yield a row for every number of sequences, each with a prompt of its own and as many tokens after it."""
        for number in sequences:
            tokens_per_s, first_s = self._generate(number, prompt, tokens)
            recorded = self._recorded(number)
            num_replays = _REPLAYS if self._device.type == "cuda" else 1
            step_s = median(replay_seconds(recorded.run, self._device) for _ in range(num_replays))
            weights = self._touched_weights(recorded)
            timed = int(recorded.inputs.num_there)
            seen = [position + 1 for position in recorded.inputs.positions_B[:timed].tolist()]
            touched = weights + sum(map(self._kv_bytes, seen))
            # The engine's steps go from the end of the prompts to the end of the sequences.
            touched_on_average = weights + number * self._kv_bytes(prompt + tokens // 2)
            yield DecodeRow(
                sequences=number,
                timed_sequences=timed,
                context=sum(seen) // timed,
                step_ms=step_s * 1e3,
                tokens_per_s=tokens_per_s,
                touched_gb=touched / 1e9,
                part_of_roofline=touched / card.copy_bytes_per_s / step_s,
                engine_part_of_roofline=touched_on_average / card.copy_bytes_per_s * tokens_per_s / number,
                first_token_ms=first_s * 1e3,
            )

    def close(self) -> None:
        """Stop the engine."""
        self.engine.stop()

    def _generate(self, number: int, prompt: int, tokens: int) -> tuple[float, float]:
        """Return tokens per second while all sequences generate, and seconds to the first token."""
        events: queue.SimpleQueue[tuple[float, int, object]] = queue.SimpleQueue()
        began = time.perf_counter()
        for index in range(number):
            ids = torch.randint(0, self.config.vocab_size, (prompt,)).tolist()
            request = GenerationRequest(
                request_id=f"{number}-{index}",
                prompt_ids=tuple(ids),
                max_tokens=tokens,
                sampling=SamplingParams(temperature=0.8, top_k=50, seed=index),
            )

            def receive(event: object, index: int = index) -> None:
                events.put((time.perf_counter(), index, event))

            self.engine.submit(request, receive)
        chosen: list[tuple[float, int]] = []
        ready, ended = 0, 0
        all_ready_at = first_end_at = first_at = 0.0
        while ended < number:
            now, index, event = events.get(timeout=_WAIT_S)
            if isinstance(event, PromptDone):
                ready += 1
                all_ready_at = now
            elif isinstance(event, TokenChosen):
                first_at = first_at or now
                chosen.append((now, index))
            elif isinstance(event, Ended):
                if event.error is not None:
                    raise event.error
                ended += 1
                first_end_at = first_end_at or now
        # Steps that all sequences shared: each gives one token of the first one.
        steps = [at for at, index in chosen if index == 0 and all_ready_at < at < first_end_at]
        if len(steps) < 2:
            raise RuntimeError(f"expected {number} sequences to generate at once, found that they do not: give more KV")
        return number * (len(steps) - 1) / (steps[-1] - steps[0]), first_at - began

    def _recorded(self, number: int) -> RecordedStep:
        graphs = self.engine.graphs
        assert graphs is not None
        recorded = next(each for each in graphs.steps if each.inputs.num_rows >= number)
        if int(recorded.inputs.num_there) < _MOSTLY * number:
            raise RuntimeError(f"expected a recorded step of {number} sequences, found {recorded.inputs.num_there}")
        return recorded

    def _touched_weights(self, recorded: RecordedStep) -> int:
        """Return the bytes of weights that the last step read: the router's, and those of experts it visited."""
        config = self.config
        weights = self.decoder.weight_bytes() - config.vocab_size * config.hidden_size * self.decoder.dtype.itemsize
        for layer, experts in recorded.step.experts.items():
            weights += experts.num_visited() * self.experts[layer][0].num_bytes
        return weights

    def _kv_bytes(self, context: int) -> int:
        """Return the bytes of keys and values that a token after so many reads."""
        layout = self.engine.layout
        local = min(context, self.config.attention_chunk or context)
        return context * layout.global_token_bytes + local * layout.local_token_bytes


def _free_bytes(device: torch.device) -> int:
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def _used_bytes(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return total - free
