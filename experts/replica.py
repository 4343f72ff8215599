"""One expert replica without its network: what it holds, how busy it is, what it computed."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from experts.batcher import Batcher, BatcherLimits
from models.config import ModelConfig
from protos.codec import wire_dtype
from protos.expert.v1 import expert_pb2


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
    def weight_bytes(self) -> int:
        """Bytes in memory."""

    @property
    def loaded_bytes(self) -> int:
        """Bytes read from the checkpoint."""

    def run(self, layer: int, hidden_ND: Tensor, expert_ids: Sequence[int], token_counts: Sequence[int]) -> Tensor:
        """Return outputs [N, D] of tokens sorted by expert."""


class Replica:
    """Held experts behind a batcher.

    Args:
        held: the experts.
        replica_id: unique in the cluster, new after every restart; None: host name and a random part.
        limits: of the batcher.
    """

    def __init__(self, held: HeldExperts, *, replica_id: str | None, limits: BatcherLimits) -> None:
        self.replica_id = replica_id or f"{socket.gethostname()}-{secrets.token_hex(6)}"
        self.held = held
        # Three matrices: gate, up and down.
        macs_per_token = 3 * held.config.hidden_size * held.config.expert_width
        self.batcher = Batcher(self._run, limits, macs_per_token=macs_per_token)
        self._tokens_by_expert = dict.fromkeys(held.expert_ids, 0)

    def load(self) -> expert_pb2.Load:
        """Return how busy it is now."""
        return expert_pb2.Load(queued_tokens=self.batcher.queued_tokens, total_tokens=self.batcher.total_tokens)

    def describe(self) -> expert_pb2.DescribeResponse:
        """Return what it holds and how busy it is."""
        held = self.held
        return expert_pb2.DescribeResponse(
            replica_id=self.replica_id,
            model_fingerprint=held.fingerprint,
            layers=held.config.moe_layers,
            expert_ids=held.expert_ids,
            dtype=wire_dtype(held.dtype),
            hidden_size=held.config.hidden_size,
            weight_bytes=held.weight_bytes,
            loaded_bytes=held.loaded_bytes,
            draining=self.batcher.is_draining,
            load=self.load(),
            expert_tokens=self._tokens_by_expert.values(),
        )

    def _run(self, layer: int, hidden_ND: Tensor, expert_ids: Sequence[int], token_counts: Sequence[int]) -> Tensor:
        """Compute a batch and count its tokens; the batcher calls this from one thread at a time."""
        outputs_ND = self.held.run(layer, hidden_ND, expert_ids, token_counts)
        for expert, count in zip(expert_ids, token_counts, strict=True):
            self._tokens_by_expert[expert] += count
        return outputs_ND
