"""A layer's attention on a GPU, from what is normalised to what is added: two products, and two or three launches."""

from __future__ import annotations

from torch import Tensor

from models.gpu.attention import attend, place
from models.gpu.attention_pages import AttentionPages
from models.llama4.attention import PositionTables
from models.llama4.decoder import Decoder, DecoderLayer


def attend_layer(
    decoder: Decoder,
    index: int,
    layer: DecoderLayer,
    normed_TD: Tensor,
    tables: PositionTables,
    slots_T: Tensor,
    pages: AttentionPages,
    cache: tuple[Tensor, Tensor],
) -> Tensor:
    """Return what a layer's attention adds to the residual stream [T, D], its keys and values written into the cache.

    Args:
        decoder: on a GPU.
        index: of the layer.
        layer: its weights.
        normed_TD: [T, D], normalised.
        tables: of the step's positions.
        slots_T: [T] integers, where each token's own keys and values go.
        pages: who reads what in layers of this kind.
        cache: keys and values [slots, G, C] of the layer.
    """
    config, (keys, values) = decoder.config, cache
    rotates = index not in config.nope_layers
    q_THC = place(
        layer.attention.qkv(normed_TD),
        tables.turns if rotates else None,
        None if rotates else tables.temperature_T,
        slots_T,
        keys,
        values,
        interleaved=config.rope_interleaved,
        norm_eps=config.norm_eps if rotates and config.qk_norm else None,
    )
    return layer.attention.o(attend(q_THC, keys, values, pages).flatten(1))
