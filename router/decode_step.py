"""A decode step on one GPU, its experts beside it: one token of each sequence, and nothing that the host waits for.

What differs from step to step lies in its inputs (`decode_inputs`), at the same place and in the same form every time:
so a step can be recorded once and replayed (`decode_graphs`).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.gpu.attention_pages import AttentionPages, choose_splits
from models.gpu.moe import DecodeExperts, ResidentExperts
from models.gpu.residual import Addend, add_norm
from models.llama4.attention import PositionTables
from models.llama4.decoder import Decoder
from router.decode_inputs import DecodeCache, DecodeInputs
from router.gpu_attention import attend_layer


class DecodeAttention:
    """The attention of a decode step's layers: what they read of the cache lies in the step's inputs.

    Args:
        decoder: on a GPU.
        cache: that keys and values are in.
        inputs: of the step.
    """

    def __init__(self, decoder: Decoder, cache: DecodeCache, inputs: DecodeInputs) -> None:
        assert cache.storage.plain is not None
        self._decoder, self._storage, self._inputs = decoder, cache.storage.plain, inputs
        programs = inputs.num_rows * decoder.config.num_kv_heads

        def reading(kind: int, most_keys: int) -> AttentionPages:
            splits = choose_splits(programs, most_keys, decoder.device)
            return AttentionPages(inputs.queries_2B4[kind], inputs.pages_P, cache.layout.page_tokens, 1, splits)

        self._readings = reading(0, cache.longest), reading(1, min(cache.longest, cache.layout.chunk or cache.longest))

    def __call__(self, index: int, normed_BD: Tensor, tables: PositionTables) -> Tensor:
        """Return what a layer's attention adds to the residual stream [B, D].

        Args:
            index: of the layer.
            normed_BD: [B, D], normalised.
            tables: of the step's positions.
        """
        decoder, kind = self._decoder, int(self._decoder.config.is_local(index))
        slots_B, pages, cache = self._inputs.slots_2B[kind], self._readings[kind], self._storage[index]
        return attend_layer(decoder, index, decoder.layers[index], normed_BD, tables, slots_B, pages, cache)


class DecodeStep:
    """Computes logits of up to so many tokens, and writes their keys and values into the cache.

    Args:
        decoder: on a GPU.
        experts: of each MoE layer, on the same.
        cache: for keys and values.
        inputs: read by every step.
    """

    def __init__(
        self, decoder: Decoder, experts: Mapping[int, ResidentExperts], cache: DecodeCache, inputs: DecodeInputs
    ) -> None:
        self._decoder, self._inputs = decoder, inputs
        self.experts = {layer: DecodeExperts(each, inputs.num_rows) for layer, each in experts.items()}
        """By layer."""
        self._attention = DecodeAttention(decoder, cache, inputs)

    def __call__(self) -> Tensor:
        """Return the logits [B, V] float32; rows of tokens that are not there hold anything."""
        decoder, inputs = self._decoder, self._inputs
        eps = decoder.config.norm_eps
        tables = decoder.attention.tables(inputs.positions_B)
        hidden_BD, addend = decoder.embed(inputs.ids_B), None
        for index, layer in enumerate(decoder.layers):
            normed = add_norm(hidden_BD, addend, layer.attn_norm, eps)
            addend = Addend(self._attention(index, normed.normed_TD, tables))
            if layer.gate_ED is None:
                assert layer.dense is not None
                normed = add_norm(normed.hidden_TD, addend, layer.ffn_norm, eps)
                addend = Addend(layer.dense(normed.normed_TD))
            else:
                normed, addend = self.experts[index](
                    normed.hidden_TD, addend, layer.ffn_norm, eps, layer.gate_ED, inputs.num_there
                )
            hidden_BD = normed.hidden_TD
        return decoder.head(add_norm(hidden_BD, addend, decoder.norm_D, eps).normed_TD)
