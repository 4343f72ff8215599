"""Decode steps whose experts are elsewhere, recorded from one dispatch to the next.

    segment | ids to the host, plan, dispatch | shared expert | wait | segment | ...

Between two dispatches there are some fifteen launches, which take the host longer than the card; recorded they are
one. The host learns which experts are visited once a layer: it has to address messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from models.gpu.residual import Addend, add_norm
from models.llama4.attention import PositionTables
from models.llama4.decoder import Decoder, DecoderLayer
from router.batch import Span
from router.cuda_graph import Recorder
from router.decode_graphs import room_for_pages
from router.decode_step import DecodeInputs, decode_readings
from router.gate import choose
from router.gpu_attention import attend_layer
from router.kv_cache.layout import CacheLayout
from router.kv_cache.storage import KvStorage
from router.paging.paged_kv import PagingPlan
from router.plan import plan_dispatch
from router.transport.base import Transport

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Numbers of tokens that steps are recorded for, two graphs a layer each: fewer than of whole steps."""


class DecodeSegments:
    """Steps of one token of each sequence, for several numbers of sequences.

    Args:
        decoder: on a GPU.
        transport: the way to the experts.
        storage: the cache, which keeps what is computed as it is.
        layout: of the cache.
        plan: its pages.
        slots: most sequences of a step.
        longest: most tokens of a sequence.
        give_sign: called after every dispatch that was answered.

    Cost: records all steps, which takes seconds.
    """

    def __init__(
        self,
        decoder: Decoder,
        transport: Transport,
        storage: KvStorage,
        layout: CacheLayout,
        plan: PagingPlan,
        slots: int,
        longest: int,
        give_sign: Callable[[], None] = lambda: None,
    ) -> None:
        self._transport, self._give_sign = transport, give_sign
        recorder: Recorder[None] = Recorder(decoder.device)
        self._steps = []
        for num_rows in [*(size for size in _SIZES if size < slots), slots]:
            inputs = DecodeInputs(num_rows, room_for_pages(plan), layout, decoder.device)
            self._steps.append(SegmentedStep(decoder, storage, layout, inputs, longest, recorder))

    @torch.inference_mode()
    def logits(self, spans: Sequence[Span]) -> Tensor | None:
        """Compute a step; return the logits [B, V] float32, span after span, or None if it is no such step.

        They are overwritten by the next step.

        Raises:
            As `Forward`.
        """
        step = next((each for each in self._steps if len(spans) <= each.inputs.num_rows), None)
        if step is None or not step.inputs.fill(spans):
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


class Segment:
    """What is computed from the answers to one dispatch to the tokens of the next one, or to the logits.

    Args:
        layer: whose experts come after it; None: none do.
        run: up to there.
        run_shared: that layer's shared expert.
    """

    def __init__(self, layer: int | None, run: Callable[[], None], run_shared: Callable[[], None]) -> None:
        self.layer, self.run, self.run_shared = layer, run, run_shared


class SegmentedStep:
    """The segments of a step of up to so many tokens, and what they hand to each other and to the host.

    Args:
        decoder: on a GPU.
        storage: the cache.
        layout: of the cache.
        inputs: read by every step.
        longest: most tokens of a sequence.
        recorder: of all segments.
    """

    def __init__(
        self,
        decoder: Decoder,
        storage: KvStorage,
        layout: CacheLayout,
        inputs: DecodeInputs,
        longest: int,
        recorder: Recorder[None],
    ) -> None:
        assert storage.plain is not None
        self.inputs = inputs
        self._decoder, self._storage = decoder, storage.plain
        self._readings = decode_readings(decoder, layout, inputs, longest)
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
        assert self._tables is not None
        kind = int(self._decoder.config.is_local(index))
        slots_B, cache = self.inputs.slots_2B[kind], self._storage[index]
        layer, pages = self._decoder.layers[index], self._readings[kind]
        return attend_layer(self._decoder, index, layer, normed_BD, self._tables, slots_B, pages, cache)

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
