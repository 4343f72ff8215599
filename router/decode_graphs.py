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
from router.decode_step import DecodeInputs, DecodeStep
from router.kv_cache.layout import CacheLayout
from router.kv_cache.storage import KvStorage
from router.paging.paged_kv import PagingPlan

_ROOM_FOR_SHARED = 2
"""How many times the pages there are all sequences' may be: those that several share count for each."""


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
        storage: the cache, which keeps what is computed as it is.
        layout: of the cache.
        plan: its pages.
        slots: most sequences of a step.
        longest: most tokens of a sequence.

    Cost: records all steps, which takes seconds; each keeps its logits.
    """

    def __init__(
        self,
        decoder: Decoder,
        experts: Mapping[int, ResidentExperts],
        storage: KvStorage,
        layout: CacheLayout,
        plan: PagingPlan,
        slots: int,
        longest: int,
    ) -> None:
        num_experts = decoder.config.num_experts
        self.steps: list[RecordedStep] = []
        """By number of tokens, ascending."""
        recorder: Recorder[Tensor] = Recorder(decoder.device)
        for num_rows in step_sizes(slots):
            if num_experts and not can_route(num_rows, num_experts):
                break
            inputs = DecodeInputs(num_rows, room_for_pages(plan), layout, decoder.device)
            step = DecodeStep(decoder, experts, storage, layout, inputs, longest)
            self.steps.append(RecordedStep(inputs, step, recorder.record(step)))

    @torch.inference_mode()
    def logits(self, spans: Sequence[Span]) -> Tensor | None:
        """Compute a step; return the logits [B, V] float32, span after span, or None if it is no such step.

        They are overwritten by the next step.
        """
        recorded = next((each for each in self.steps if len(spans) <= each.inputs.num_rows), None)
        if recorded is None or not recorded.inputs.fill(spans):
            return None
        return recorded.run()[: len(spans)]


def step_sizes(slots: int) -> list[int]:
    """Return the numbers of tokens that steps are recorded for: up to 8 by doubling, then in eights, then in 32s."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, slots + 32, 32)]
    return [*(size for size in sizes if size < slots), slots]


def room_for_pages(plan: PagingPlan) -> int:
    """Return the most pages of all sequences of a step together."""
    return _ROOM_FOR_SHARED * (plan.num_global_pages + plan.num_local_pages)
