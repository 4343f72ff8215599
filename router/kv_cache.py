"""Keys and values of past tokens, per sequence: local layers keep the current chunk only.

    position      0 ........ C-1 | C ........ 2C-1 | 2C .... p
    global layer  [ every token from 0 to p                  ]
    local layer                                     [2C .. p ]   the chunks before are dead: no later token sees them

Each sequence owns two buffers, one for each kind of layer, which grow by doubling up to what was reserved for it
when it was admitted; both go when the sequence ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import ModelConfig

_FIRST_TOKENS = 64


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """The arithmetic of a model's cache: which layers keep what, and the bytes of it. Pure integers."""

    config: ModelConfig
    dtype: torch.dtype

    @property
    def local_layers(self) -> tuple[int, ...]:
        """Return the layers that keep the current chunk only."""
        return tuple(layer for layer in range(self.config.num_layers) if self.config.is_local(layer))

    @property
    def global_layers(self) -> tuple[int, ...]:
        """Return the layers that keep every token."""
        return tuple(layer for layer in range(self.config.num_layers) if not self.config.is_local(layer))

    @property
    def bytes_per_token_layer(self) -> int:
        """Return the bytes of one token's keys and values in one layer."""
        return 2 * self.config.num_kv_heads * self.config.head_size * self.dtype.itemsize

    def local_tokens(self, num_tokens: int) -> int:
        """Return the most tokens a local layer holds at once, for a sequence of `num_tokens`."""
        return min(num_tokens, self.config.attention_chunk or num_tokens)

    def sequence_bytes(self, num_tokens: int) -> int:
        """Return the bytes a sequence that grows to `num_tokens` needs at most."""
        slots = len(self.global_layers) * num_tokens + len(self.local_layers) * self.local_tokens(num_tokens)
        return slots * self.bytes_per_token_layer

    def segments(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Cut positions [start, stop) at chunk boundaries: inside a piece, attention is causal and nothing else."""
        chunk = self.config.attention_chunk
        while start < stop:
            end = stop if chunk is None else min(stop, (start // chunk + 1) * chunk)
            yield start, end
            start = end


class SequenceCache:
    """The keys and values of one sequence.

    Args:
        layout: of the model.
        max_tokens: the sequence's greatest length, which was reserved for it.
        device: where the buffers live.
    """

    def __init__(self, layout: CacheLayout, max_tokens: int, device: torch.device) -> None:
        self._layout = layout
        self._max_tokens = max_tokens
        self._device = device
        self._index = {
            layer: i for layers in (layout.global_layers, layout.local_layers) for i, layer in enumerate(layers)
        }
        self._global = self._buffer(len(layout.global_layers), min(_FIRST_TOKENS, max_tokens))
        self._local = self._buffer(len(layout.local_layers), min(_FIRST_TOKENS, layout.local_tokens(max_tokens)))

    @property
    def num_bytes(self) -> int:
        """Return the bytes in memory now; never more than was reserved."""
        return self._global.nbytes + self._local.nbytes

    def extend(self, layer: int, position: int, k_TGC: Tensor, v_TGC: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values of the tokens from `position` on, and return all that these tokens may see.

        Args:
            layer: decoder layer, 0-based.
            position: absolute position of the first new token; the tokens lie within one chunk.
            k_TGC: [T, G, C].
            v_TGC: [T, G, C].

        Returns:
            keys and values, views of [G, S, C]; the last T of S are the new ones.
        """
        is_local = self._layout.config.is_local(layer)
        start = position % (self._layout.config.attention_chunk or 1) if is_local else position
        stop = start + k_TGC.shape[0]
        buffer = self._grown_local(stop) if is_local else self._grown_global(stop)
        own_2GSC = buffer[self._index[layer]]
        own_2GSC[:, :, start:stop] = torch.stack((k_TGC, v_TGC)).transpose(1, 2)
        keys_GSC, values_GSC = own_2GSC[:, :, :stop].unbind()
        return keys_GSC, values_GSC

    def _grown_global(self, num_tokens: int) -> Tensor:
        self._global = self._grown(self._global, num_tokens, self._max_tokens)
        return self._global

    def _grown_local(self, num_tokens: int) -> Tensor:
        self._local = self._grown(self._local, num_tokens, self._layout.local_tokens(self._max_tokens))
        return self._local

    def _grown(self, buffer: Tensor, num_tokens: int, most: int) -> Tensor:
        have = buffer.shape[3]
        if num_tokens <= have:
            return buffer
        if num_tokens > most:
            raise AssertionError(f"{num_tokens} tokens in a cache reserved for {most}")
        larger = self._buffer(buffer.shape[0], min(max(2 * have, num_tokens), most))
        larger[:, :, :, :have] = buffer
        return larger

    def _buffer(self, num_layers: int, num_tokens: int) -> Tensor:
        """Return an empty [layers, key or value, G, tokens, C]."""
        config = self._layout.config
        shape = (num_layers, 2, config.num_kv_heads, num_tokens, config.head_size)
        return torch.empty(shape, dtype=self._layout.dtype, device=self._device)
