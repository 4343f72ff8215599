"""One step through the model: attention here, experts behind the transport."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.llama4.attention import PositionTables, attend
from models.llama4.decoder import Decoder, DecoderLayer
from router.batch import Batch
from router.combine import combine
from router.gate import route
from router.plan import plan_dispatch
from router.transport.base import Transport

LayerProbe = Callable[[int, Tensor], None]
"""(layer, residual stream [T, D] after it), for parity tests and debugging."""


@dataclass(frozen=True, slots=True)
class Forward:
    """Computes logits for a batch and fills its caches. Not thread-safe: one step at a time."""

    decoder: Decoder
    transport: Transport
    probe: LayerProbe = field(default=lambda layer, hidden_TD: None)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Tensor:
        """Return the logits [rows, V] float32 of `batch.logit_rows`.

        Raises:
            ReplicaError: experts could not be reached; the caches of this batch are then undefined.
            StepAbandoned: the transport's `on_wait` gave up waiting for them; likewise.
        """
        decoder = self.decoder
        tables = decoder.attention.tables(batch.positions_T)
        hidden_TD = decoder.embed(batch.ids_T)
        for index, layer in enumerate(decoder.layers):
            normed_TD = decoder.normed(hidden_TD, layer.attn_norm)
            hidden_TD = hidden_TD + self._attention(index, layer, normed_TD, tables, batch)
            normed_TD = decoder.normed(hidden_TD, layer.ffn_norm)
            hidden_TD = hidden_TD + self._feed_forward(index, layer, normed_TD)
            self.probe(index, hidden_TD)
        return decoder.logits(hidden_TD[batch.logit_rows])

    def _attention(
        self, index: int, layer: DecoderLayer, hidden_TD: Tensor, tables: PositionTables, batch: Batch
    ) -> Tensor:
        q_THC, k_TGC, v_TGC = self.decoder.attention.project(index, hidden_TD, layer.attention, tables)
        mixed_THC = torch.empty_like(q_THC)
        for segment in batch.segments:
            rows = slice(segment.row_start, segment.row_stop)
            keys_GSC, values_GSC = segment.cache.extend(index, segment.position, k_TGC[rows], v_TGC[rows])
            mixed_THC[rows] = attend(q_THC[rows], keys_GSC, values_GSC)
        return layer.attention.o(mixed_THC.flatten(1))

    def _feed_forward(self, index: int, layer: DecoderLayer, hidden_TD: Tensor) -> Tensor:
        if layer.gate_ED is None or layer.shared is None:
            assert layer.dense is not None
            return layer.dense(hidden_TD)
        expert_ids_TK, scores_TK = route(hidden_TD, layer.gate_ED, self.decoder.config.experts_per_token)
        plan = plan_dispatch(expert_ids_TK, self.transport.choose_replica)
        # The score scales the expert's input, not its output: SwiGLU is not linear (llama-models, llama4/moe.py).
        scores_N1 = scores_TK.reshape(-1, 1).index_select(0, plan.slots_N)
        scaled_ND = hidden_TD.index_select(0, plan.token_rows_N) * scores_N1
        pending = self.transport.dispatch(index, plan, scaled_ND)
        shared_TD = layer.shared(hidden_TD)  # computed while the dispatch is in flight
        return combine(shared_TD, pending.wait(), plan)
