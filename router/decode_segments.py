"""Decode steps whose experts are elsewhere, recorded from one dispatch to the next.

    segment | ids to the host, plan, dispatch | shared expert | wait | segment | ...

Between two dispatches there are some fifteen launches, which take the host longer than the card; recorded they are
one. The host learns which experts are visited once a layer: it has to address messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.gpu.residual import Addend, add_norm
from models.llama4.attention import PositionTables
from models.llama4.decoder import Decoder, DecoderLayer
from router.batch import Span
from router.cuda_graph import Recorder
from router.decode_inputs import DecodeCache, DecodeInputs, filled
from router.decode_step import DecodeAttention
from router.gate import choose
from router.plan import plan_dispatch
from router.transport.base import Transport

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Numbers of tokens that steps are recorded for, two graphs a layer each: fewer than of whole steps."""


class DecodeSegments:
    """Steps of one token of each sequence, for several numbers of sequences.

    Args:
        decoder: on a GPU.
        transport: the way to the experts.
        cache: for keys and values.
        give_sign: called after every dispatch that was answered.

    Cost: records all steps, which takes seconds.
    """

    def __init__(
        self,
        decoder: Decoder,
        transport: Transport,
        cache: DecodeCache,
        give_sign: Callable[[], None] = lambda: None,
    ) -> None:
        self._transport, self._give_sign = transport, give_sign
        recorder: Recorder[None] = Recorder(decoder.device)
        self._steps = []
        for num_rows in [*(size for size in _SIZES if size < cache.slots), cache.slots]:
            inputs = cache.inputs(num_rows, decoder.device)
            self._steps.append(SegmentedStep(decoder, cache, inputs, recorder))

    @torch.inference_mode()
    def logits(self, spans: Sequence[Span]) -> Tensor | None:
        """Compute a step; return the logits [B, V] float32, span after span, or None if it is no such step.

        They are overwritten by the next step.

        Raises:
            As `Forward`.
        """
        step = filled(self._steps, spans)
        if step is None:
            return None
        for segment in step.segments:
            segment.run()
            if segment.layer is not None:
                self._dispatch(step, segment, len(spans))
                self._give_sign()
        assert step.logits_BV is not None
        return step.logits_BV[: len(spans)]

    def _dispatch(self, step: SegmentedStep, segment: Segment, num_there: int) -> None:
        """Run the layer's experts and its shared one, and leave what they give to the next segment."""
        assert segment.layer is not None
        plan = plan_dispatch(step.expert_ids_BK[:num_there].cpu(), self._transport.assign)
        slots_N = plan.slots_N.to(step.x_ND.device, non_blocking=True)
        pending = self._transport.dispatch(segment.layer, plan, step.x_ND.index_select(0, slots_N))
        try:
            segment.run_shared()
            step.outputs_ND.index_copy_(0, slots_N, pending.wait())
        finally:
            pending.give_up()


@dataclass(frozen=True, slots=True)
class Segment:
    """What is computed from the answers to one dispatch to the tokens of the next one, or to the logits."""

    layer: int | None
    """Whose experts come after it; None: none do."""
    run: Callable[[], None]
    """Up to there."""
    run_shared: Callable[[], None]
    """That layer's shared expert."""


class SegmentedStep:
    """The segments of a step of up to so many tokens, and what they hand to each other and to the host.

    Args:
        decoder: on a GPU.
        cache: for keys and values.
        inputs: read by every step.
        recorder: of all segments.
    """

    def __init__(self, decoder: Decoder, cache: DecodeCache, inputs: DecodeInputs, recorder: Recorder[None]) -> None:
        self.inputs = inputs
        self._decoder = decoder
        self._attend = DecodeAttention(decoder, cache, inputs)
        config, device = decoder.config, decoder.device
        num_choices = inputs.num_rows * config.experts_per_token
        self.expert_ids_BK = torch.zeros(inputs.num_rows, config.experts_per_token, dtype=torch.int64, device=device)
        """Of the segment that ran last."""
        self.x_ND = torch.zeros(num_choices, config.hidden_size, dtype=decoder.dtype, device=device)
        """[B · K, D], tokens multiplied by their scores, choice after choice; of the segment that ran last."""
        self.outputs_ND = torch.zeros_like(self.x_ND)
        """[B · K, D], what the experts gave for these: the next segment reads it."""
        self.logits_BV: Tensor | None = None
        """[B, V] float32, once the last segment ran."""
        self._rows_BK = torch.arange(num_choices, dtype=torch.int32, device=device).view_as(self.expert_ids_BK)
        # What one segment leaves to the next lies in memory of its own: recording runs a segment twice, and what the
        # first run returned is gone when others are replayed.
        self._hidden_BD, self._normed_BD, self._shared_BD = self.x_ND.new_zeros(
            3, inputs.num_rows, config.hidden_size
        ).unbind(0)
        self._tables: PositionTables | None = None
        self.segments = list(self._record(recorder))

    def _record(self, recorder: Recorder[None]) -> Iterator[Segment]:
        """Record segment after segment: each reads what the one before it left."""
        layers: list[int] = []
        for index, layer in enumerate(self._decoder.layers):
            layers.append(index)
            if layer.gate_ED is not None:
                run = recorder.record(self._between(tuple(layers)))
                yield Segment(index, run, recorder.record(self._shared(index)))
                layers = []
        yield Segment(None, recorder.record(self._between(tuple(layers), is_last=True)), lambda: None)

    def _shared(self, index: int) -> Callable[[], None]:
        def run() -> None:
            shared = self._decoder.layers[index].shared
            assert shared is not None
            self._shared_BD.copy_(shared(self._normed_BD))

        return run

    def _between(self, layers: tuple[int, ...], *, is_last: bool = False) -> Callable[[], None]:
        """Return what computes some layers, all but the last dense; behind the last one of all, the logits."""
        decoder = self._decoder
        eps = decoder.config.norm_eps
        is_first = 0 in layers

        def run() -> None:
            hidden_BD, addend = self._begin() if is_first else (self._hidden_BD, self._answered())
            for index in layers:
                layer = decoder.layers[index]
                normed = add_norm(hidden_BD, addend, layer.attn_norm, eps)
                addend = Addend(self._attention(index, normed.normed_TD))
                if layer.gate_ED is None:
                    assert layer.dense is not None
                    normed = add_norm(normed.hidden_TD, addend, layer.ffn_norm, eps)
                    hidden_BD, addend = normed.hidden_TD, Addend(layer.dense(normed.normed_TD))
                else:
                    self._ask(layer, normed.hidden_TD, addend)
            if is_last:
                self.logits_BV = decoder.head(add_norm(hidden_BD, addend, decoder.norm_D, eps).normed_TD)

        return run

    def _begin(self) -> tuple[Tensor, None]:
        self._tables = self._decoder.attention.tables(self.inputs.positions_B)
        return self._decoder.embed(self.inputs.ids_B), None

    def _answered(self) -> Addend:
        return Addend(self._shared_BD, self.outputs_ND, self._rows_BK)

    def _attention(self, index: int, normed_BD: Tensor) -> Tensor:
        assert self._tables is not None, "the first segment makes them"
        return self._attend(index, normed_BD, self._tables)

    def _ask(self, layer: DecoderLayer, hidden_BD: Tensor, addend: Addend) -> None:
        """Ask the gate, and leave what the host and the next segment want to know."""
        config = self._decoder.config
        normed = add_norm(
            hidden_BD,
            addend,
            layer.ffn_norm,
            config.norm_eps,
            gate_ED=layer.gate_ED,
            normed_TD=self._normed_BD,
            new_hidden_TD=self._hidden_BD,
        )
        assert normed.logits_TE is not None
        ids_BK, scores_BK = choose(normed.logits_TE, config.experts_per_token, hidden_BD.dtype)
        self.expert_ids_BK.copy_(ids_BK)
        torch.mul(self._normed_BD[:, None], scores_BK[..., None], out=self.x_ND.view(*ids_BK.shape, -1))
