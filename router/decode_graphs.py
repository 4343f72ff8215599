"""Decode steps recorded as CUDA graphs: the host hands over numbers and starts the step, nothing else.

Launch by launch a step of Scout's 48 layers is some 500 launches, each of which costs Python more than the card. A
recorded step is one. It is for a number of tokens; steps of fewer are filled up with tokens that are not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.gpu.moe import ResidentExperts
from models.gpu.route import can_route
from models.llama4.decoder import Decoder
from router.batch import Span
from router.cuda_graph import Recorder
from router.decode_inputs import DecodeCache, DecodeInputs, filled
from router.decode_step import DecodeStep


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """A step of up to so many tokens."""

    inputs: DecodeInputs
    step: DecodeStep
    run: Callable[[], Tensor]
    """Does what `step` does."""


class DecodeGraphs:
    """Steps of one token of each sequence, for several numbers of sequences.

    Where there is no GPU nothing is recorded: every step is computed anew.

    Args:
        decoder: on a GPU.
        experts: of each MoE layer, on the same.
        cache: for keys and values.

    Cost: records all steps, which takes seconds; each keeps its logits.
    """

    def __init__(self, decoder: Decoder, experts: Mapping[int, ResidentExperts], cache: DecodeCache) -> None:
        num_experts = decoder.config.num_experts
        self.steps: list[RecordedStep] = []
        """By number of tokens, ascending."""
        recorder: Recorder[Tensor] = Recorder(decoder.device)
        for num_rows in step_sizes(cache.slots):
            if num_experts and not can_route(num_rows, num_experts):
                break
            inputs = cache.inputs(num_rows, decoder.device)
            step = DecodeStep(decoder, experts, cache, inputs)
            self.steps.append(RecordedStep(inputs, step, recorder.record(step)))

    @torch.inference_mode()
    def logits(self, spans: Sequence[Span]) -> Tensor | None:
        """Compute a step; return the logits [B, V] float32, span after span, or None if it is no such step.

        They are overwritten by the next step.
        """
        recorded = filled(self.steps, spans)
        return None if recorded is None else recorded.run()[: len(spans)]


def step_sizes(slots: int) -> list[int]:
    """Return the numbers of tokens that steps are recorded for: up to 8 by doubling, then in eights, then in 32s."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, slots + 32, 32)]
    return [*(size for size in sizes if size < slots), slots]
