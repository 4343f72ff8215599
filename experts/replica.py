"""One expert replica without its network: what it holds, how busy it is, what it computed."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from experts.batcher import Batcher, BatcherLimits
from experts.source import Progress
from models.config import ModelConfig
from models.linear import Quantization
from models.llama4.mlp import Mlp
from protos.codec import wire_dtype
from protos.device_memory import wait_for
from protos.expert.v1 import expert_pb2

# What a dispatch that was checked may take until it waits in the batcher, in seconds: two lines of code.
_ON_ITS_WAY_S = 0.1
# Longest wait for what was accepted, in seconds: longer than a router waits for an answer.
_SETTLE_S = 30.0
_LOOK_EVERY_S = 0.005


# How many times as fast as a core a GPU multiplies, cautiously: by its data sheet an H100 does 7,700 times the 64
# multiplications a nanosecond that the batcher's limits reckon with, but few tokens wait for weights.
_GPU_SPEED = 1_000


class HeldExperts(Protocol):
    """Resident experts: `ExpertWeights`."""

    @property
    def config(self) -> ModelConfig:
        """The model they belong to."""

    @property
    def fingerprint(self) -> str:
        """Which model exactly."""

    @property
    def expert_ids(self) -> tuple[int, ...]:
        """Logical experts held in every MoE layer, ascending."""

    @property
    def dtype(self) -> torch.dtype:
        """Of tokens and outputs."""

    @property
    def device(self) -> torch.device:
        """Where they are computed."""

    @property
    def quantize(self) -> Quantization | None:
        """How weights are rounded; None: not at all."""

    @property
    def weight_bytes(self) -> int:
        """Bytes in memory."""

    @property
    def loaded_bytes(self) -> int:
        """Bytes read from the checkpoint."""

    def held_expert(self, expert: int) -> Mapping[int, Mlp]:
        """Return a held expert's weights by layer, ascending."""

    def hold(self, expert_ids: Sequence[int], progress: Progress | None = None) -> None:
        """Read experts and add them, beside `run`."""

    def release(self, expert_ids: Sequence[int], settle: Callable[[], None] = ...) -> None:
        """Take no more work for experts, call `settle`, drop them; beside `run`."""

    def run(self, layer: int, hidden_ND: Tensor, expert_ids: Sequence[int], token_counts: Sequence[int]) -> Tensor:
        """Return outputs [N, D] of tokens sorted by expert."""


class Replica:
    """Held experts behind a batcher.

    Args:
        held: the experts.
        replica_id: unique in the cluster, new after every restart; None: host name and a random part.
        limits: of the batcher.
        on_first_dispatch: called once, after the first dispatch was computed; it must not block.
    """

    def __init__(
        self,
        held: HeldExperts,
        *,
        replica_id: str | None,
        limits: BatcherLimits,
        on_first_dispatch: Callable[[], None] = lambda: None,
    ) -> None:
        self.replica_id = replica_id or f"{socket.gethostname()}-{secrets.token_hex(6)}"
        self.held = held
        self.batcher = Batcher(self._run, limits, macs_per_token=_macs_per_token(held))
        self._tokens: dict[int, dict[int, int]] = {layer: {} for layer in held.config.moe_layers}
        self._num_batches = 0
        self._on_first_dispatch = on_first_dispatch

    @property
    def num_batches(self) -> int:
        """Batches computed or begun so far."""
        return self._num_batches

    def hold(self, expert_ids: Sequence[int], progress: Progress | None = None) -> None:
        """Hold more experts; each takes dispatches once all its layers are in. See `ExpertWeights.hold`."""
        self.held.hold(expert_ids, progress)

    def release(self, expert_ids: Sequence[int]) -> None:
        """Refuse dispatches for experts, compute those accepted, then drop the experts. See `ExpertWeights.release`."""
        self.held.release(expert_ids, self._settle)

    @property
    def tokens_by_layer(self) -> dict[int, dict[int, int]]:
        """Tokens run so far in each MoE layer, ascending, by each expert that ran any there."""
        return {layer: dict(tokens) for layer, tokens in self._tokens.items()}

    def load(self) -> expert_pb2.Load:
        """Return how busy it is now."""
        return expert_pb2.Load(queued_tokens=self.batcher.queued_tokens, total_tokens=self.batcher.total_tokens)

    def describe(self) -> expert_pb2.DescribeResponse:
        """Return what it holds and how busy it is."""
        held = self.held
        expert_ids = held.expert_ids  # at one moment: others may be held at the next
        by_layer = self.tokens_by_layer.values()
        return expert_pb2.DescribeResponse(
            replica_id=self.replica_id,
            model_fingerprint=held.fingerprint,
            layers=held.config.moe_layers,
            expert_ids=expert_ids,
            dtype=wire_dtype(held.dtype),
            hidden_size=held.config.hidden_size,
            weight_bytes=held.weight_bytes,
            loaded_bytes=held.loaded_bytes,
            draining=self.batcher.is_draining,
            load=self.load(),
            expert_tokens=[sum(tokens.get(expert, 0) for tokens in by_layer) for expert in expert_ids],
        )

    def _run(self, layer: int, hidden_ND: Tensor, expert_ids: Sequence[int], token_counts: Sequence[int]) -> Tensor:
        """Compute a batch and count its tokens; the batcher calls this from one thread at a time."""
        self._num_batches += 1
        outputs_ND = self.held.run(layer, hidden_ND, expert_ids, token_counts)
        wait_for(outputs_ND.device)  # else a batch on a GPU would count as computed when it is begun
        tokens = self._tokens[layer]
        for expert, count in zip(expert_ids, token_counts, strict=True):
            tokens[expert] = tokens.get(expert, 0) + count
        if self._num_batches == 1:
            self._on_first_dispatch()
        return outputs_ND

    def _settle(self) -> None:
        """Wait until all that was accepted up to now has been computed.

        At any moment at most one batch computes and each layer has one that waits; later work joins these or comes
        after them. So it has been once as many batches more have begun and another one, or once nothing is left.
        """
        time.sleep(_ON_ITS_WAY_S)
        last_batch = self._num_batches + len(self.held.config.moe_layers) + 1
        give_up_at = time.monotonic() + _SETTLE_S
        while self.batcher.num_unfinished and self._num_batches < last_batch and time.monotonic() < give_up_at:
            time.sleep(_LOOK_EVERY_S)


def _macs_per_token(held: HeldExperts) -> int:
    """Return the multiplications a token takes, counted as those of a core: the batcher's limits are in such."""
    num_macs = 3 * held.config.hidden_size * held.config.expert_width  # gate, up and down
    return num_macs if held.device.type == "cpu" else max(num_macs // _GPU_SPEED, 1)
