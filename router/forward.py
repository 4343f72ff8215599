"""One step through the model: attention here, experts behind the transport."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.cpu.attention import AttentionStep
from models.llama4.attention import PositionTables
from models.llama4.decoder import Decoder, DecoderLayer
from models.llama4.softmax import attend_causal, attend_padded, attend_past
from router.batch import Batch, Look
from router.combine import combine
from router.context_shards.attention import attend
from router.context_shards.shards import ContextShards
from router.gate import route
from router.gpu_reading import GpuLook, GpuReading
from router.kv_cache.storage import KvStorage
from router.plan import plan_dispatch
from router.reading import list_readers
from router.seen import Seen, look_up
from router.threads import threads_beside, threads_for
from router.transport.base import Transport

if TYPE_CHECKING:  # Triton: routers on a CPU do not pay for it
    from models.gpu.moe import ResidentExperts

LayerProbe = Callable[[int, Tensor], None]
"""(layer, residual stream [T, D] after it), for parity tests, and as a sign of life."""


@dataclass(frozen=True, slots=True)
class Forward:
    """Computes logits for batches and fills the cache. Not thread-safe: one step at a time."""

    decoder: Decoder
    transport: Transport
    shards: ContextShards | None = None
    """The way to keys and values of global layers that are elsewhere."""
    resident: Mapping[int, ResidentExperts] = field(default_factory=dict)
    """Experts by layer that are on the decoder's own GPU: no dispatch is made for them."""
    probe: LayerProbe = field(default=lambda layer, hidden_TD: None)

    def look(self, storage: KvStorage) -> Look:
        """Return how batches are to write down what tokens see: as the fastest attention there is here reads it."""
        if storage.plain is None:
            return look_up
        if self.decoder.has_gpu_kernels:
            return GpuLook(self.decoder.config)
        return list_readers if self.decoder.kernel is not None else look_up

    @torch.inference_mode()
    def __call__(self, batches: Sequence[Batch], storage: KvStorage) -> Tensor:
        """Return the logits [rows, V] float32 of all `logit_rows`, batch after batch.

        Args:
            batches: the step's tokens.
            storage: the cache; it has what these tokens see, and takes their own keys and values.

        Several batches take turns: while one waits for its experts, the next computes. In each layer a batch's keys
        are written before those after it read, so one may continue a sequence of another before it.

        Raises:
            ReplicaError: experts could not be reached; the cache of these tokens is then undefined.
            StepAbandoned: the transport's `on_wait` gave up waiting for them; likewise.
            ShardFailed: a context shard could not be reached; likewise.
        """
        num_tokens = sum(batch.num_tokens for batch in batches)
        with threads_for(num_tokens, by_kernel=all(batch.readings for batch in batches)):
            rows = self._rows(batches, storage)
            return self.decoder.logits(rows[0] if len(rows) == 1 else torch.cat(rows))

    def _rows(self, batches: Sequence[Batch], storage: KvStorage) -> list[Tensor]:
        """Run batches through the layers in turn; return the wanted rows [rows, D] of each."""
        rows: list[Tensor] = [torch.empty(0)] * len(batches)
        turns = {index: self._layers(batch, storage) for index, batch in enumerate(batches)}
        try:
            while turns:
                for index, turn in list(turns.items()):
                    try:
                        next(turn)
                    except StopIteration as end:
                        rows[index] = end.value
                        del turns[index]
        finally:
            for turn in turns.values():
                turn.close()  # one that failed leaves the others with dispatches that nobody waits for
        return rows

    def _layers(self, batch: Batch, storage: KvStorage) -> Generator[None, None, Tensor]:
        """Run a batch through the layers; yields while its experts compute. Returns the wanted rows [rows, D]."""
        decoder = self.decoder
        tables = decoder.attention.tables(batch.positions_T)
        hidden_TD = decoder.embed(batch.ids_T)
        if batch.readings:
            return (yield from self._layers_by_kernel(batch, storage, hidden_TD, tables))
        for index, layer in enumerate(decoder.layers):
            hidden_TD = yield from self._layer(index, layer, hidden_TD, tables, batch, storage)
            self.probe(index, hidden_TD)
        return hidden_TD[batch.logit_rows]

    def _layer(
        self,
        index: int,
        layer: DecoderLayer,
        hidden_TD: Tensor,
        tables: PositionTables,
        batch: Batch,
        storage: KvStorage,
    ) -> Generator[None, None, Tensor]:
        """Return the residual stream after a layer, computed by torch's operators."""
        normed_TD = self.decoder.normed(hidden_TD, layer.attn_norm)
        hidden_TD = hidden_TD + (yield from self._attention(index, layer, normed_TD, tables, batch, storage))
        normed_TD = self.decoder.normed(hidden_TD, layer.ffn_norm)
        return hidden_TD + (yield from self._feed_forward(index, layer, normed_TD))

    def _layers_by_kernel(
        self, batch: Batch, storage: KvStorage, hidden_TD: Tensor, tables: PositionTables
    ) -> Generator[None, None, Tensor]:
        """Do what `_layers` does, with one call per attention layer."""
        assert self.decoder.kernel is not None
        assert storage.plain is not None
        step = AttentionStep(
            self.decoder.kernel, hidden_TD, tables.turns, tables.temperature_T, batch.readings, storage.plain
        )
        for index, layer in enumerate(self.decoder.layers):
            if batch.on_shards and not self.decoder.config.is_local(index):
                # In place: the step names this memory.
                hidden_TD.copy_((yield from self._layer(index, layer, hidden_TD, tables, batch, storage)))
                self.probe(index, hidden_TD)
                continue
            normed_TD = step.attend(index)
            if layer.dense is None:
                hidden_TD += yield from self._experts(index, layer, normed_TD, step.expert_ids_TK, step.scores_TK)
            else:
                hidden_TD += layer.dense(normed_TD)
            self.probe(index, hidden_TD)
        return hidden_TD[batch.logit_rows]

    def _attention(
        self,
        index: int,
        layer: DecoderLayer,
        hidden_TD: Tensor,
        tables: PositionTables,
        batch: Batch,
        storage: KvStorage,
    ) -> Generator[None, None, Tensor]:
        seen = batch.locally if self.decoder.config.is_local(index) else batch.globally
        if isinstance(seen, GpuReading):
            return self._attention_on_gpu(index, layer, hidden_TD, tables, seen, storage)
        q_THC, k_TGC, v_TGC = self.decoder.attention.project(index, hidden_TD, layer.attention, tables)
        if batch.on_shards and not self.decoder.config.is_local(index):
            assert self.shards is not None
            mixed_THC = yield from attend(self.shards, batch.on_shards, index, q_THC, k_TGC, v_TGC)
            return layer.attention.o(mixed_THC.flatten(1))
        assert isinstance(seen, Seen)
        storage.write(index, seen.slots_T, k_TGC, v_TGC)
        return layer.attention.o(_attend(q_THC, seen, index, storage).flatten(1))

    def _attention_on_gpu(
        self,
        index: int,
        layer: DecoderLayer,
        hidden_TD: Tensor,
        tables: PositionTables,
        seen: GpuReading,
        storage: KvStorage,
    ) -> Tensor:
        from router.gpu_attention import attend_layer  # Triton: routers on a CPU do not pay for it

        assert storage.plain is not None
        cache = storage.plain[index]
        return attend_layer(self.decoder, index, layer, hidden_TD, tables, seen.slots_T, seen.pages, cache)

    def _feed_forward(self, index: int, layer: DecoderLayer, hidden_TD: Tensor) -> Generator[None, None, Tensor]:
        if layer.gate_ED is None:
            assert layer.dense is not None
            return layer.dense(hidden_TD)
        choice = route(hidden_TD, layer.gate_ED, self.decoder.config.experts_per_token)
        return (yield from self._experts(index, layer, hidden_TD, *choice))

    def _experts(
        self, index: int, layer: DecoderLayer, hidden_TD: Tensor, expert_ids_TK: Tensor, scores_TK: Tensor
    ) -> Generator[None, None, Tensor]:
        assert layer.shared is not None
        if (resident := self.resident.get(index)) is not None:
            outputs_ND, slots_N = resident.run(hidden_TD, expert_ids_TK, scores_TK)
            return combine(layer.shared(hidden_TD), outputs_ND, slots_N, expert_ids_TK.shape[1])
        plan = plan_dispatch(expert_ids_TK, self.transport.assign)
        # The score scales the expert's input, not its output: SwiGLU is not linear (llama-models, llama4/moe.py).
        scores_N1 = scores_TK.reshape(-1, 1).index_select(0, plan.slots_N)
        scaled_ND = hidden_TD.index_select(0, plan.token_rows_N) * scores_N1
        pending = self.transport.dispatch(index, plan, scaled_ND)
        try:
            with threads_beside(pending.num_neighbours):
                shared_TD = layer.shared(hidden_TD)  # computed while the dispatch is in flight
            yield
            return combine(shared_TD, pending.wait(), plan.slots_N, plan.num_choices)
        finally:
            pending.give_up()


def _attend(q_THC: Tensor, seen: Seen, layer: int, storage: KvStorage) -> Tensor:
    """Return attention [T, H, C] of a step's tokens over what they see in the cache."""
    mixed_THC = torch.empty_like(q_THC)
    for group in seen.together:
        keys_values = storage.gather(layer, group.slots_BS)
        mixed_THC[group.rows_B] = attend_padded(q_THC[group.rows_B], *keys_values, group.mask_BS)
    for segment in seen.segments:
        rows = slice(segment.row_start, segment.row_stop)
        past = [storage.read(layer, pieces) for pieces in segment.past]
        if segment.own:
            mixed_THC[rows] = attend_causal(q_THC[rows], past, storage.read(layer, segment.own))
        else:
            mixed_THC[rows] = attend_past(q_THC[rows], past)
    return mixed_THC
