"""A shard: the segments of all its routers, one step at a time."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable, Sequence

import torch

from context.attention import Append, Query, run_step
from context.leases import Leases
from context.segments import SegmentKey, SegmentStore
from models.config import ModelConfig
from models.llama4.softmax import Partial
from protos.context.v1 import context_pb2
from protos.errors import InvalidRequest, ModelMismatch

_LEASE_S = 30.0
_EXPIRE_EVERY_S = 1.0


class Shard:
    """Thread-safe: steps of several routers take turns.

    Args:
        store: what is held.
        fingerprint: of the model whose keys and values it takes.
        dtype: the model computes in.
        shard_id: unique in the cluster, new after every restart; None makes one up.
        lease_s: how long segments outlive their router's last stream; seconds.
        takes_synthetic: whether anybody may fill segments with random keys and values.
    """

    def __init__(
        self,
        store: SegmentStore,
        *,
        fingerprint: str,
        dtype: torch.dtype,
        shard_id: str | None = None,
        lease_s: float = _LEASE_S,
        takes_synthetic: bool = False,
    ) -> None:
        self.shard_id = shard_id or uuid.uuid4().hex[:12]
        self.fingerprint = fingerprint
        self.dtype = dtype
        self._store = store
        self._leases = Leases(lease_s)
        self._lease_s = lease_s
        self._takes_synthetic = takes_synthetic
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._expire, name="context-leases", daemon=True)
        self._thread.start()

    @property
    def config(self) -> ModelConfig:
        """Return the model's configuration."""
        return self._store.layout.config

    def welcome(self, router_id: str, fingerprint: str) -> context_pb2.Welcome:
        """Let a router in; `leave` must follow.

        Raises:
            ModelMismatch: it runs another model.
        """
        if fingerprint != self.fingerprint:
            raise ModelMismatch(
                f"model_fingerprint: expected {self.fingerprint}, the model of shard {self.shard_id}, found "
                f"{fingerprint or 'none'}: start router and shard with the same checkpoint",
                metadata={"expected": self.fingerprint, "found": fingerprint},
            )
        with self._lock:
            self._leases.open(router_id)
            return context_pb2.Welcome(
                shard=self._describe(),
                segment_ids=self._store.owned_by(router_id),
                lease_ms=round(self._lease_s * 1000),
            )

    def leave(self, router_id: str) -> None:
        """Take note that a router's stream has ended."""
        with self._lock:
            self._leases.close(router_id, time.monotonic())

    def run(self, layer: int, appends: Sequence[Append], queries: Sequence[Query]) -> tuple[list[Partial], int]:
        """Return a step's answers and the tokens that are free then; see `run_step`."""
        with self._lock, torch.inference_mode():
            return run_step(self._store, layer, appends, queries), self._store.free_tokens

    def release(self, keys: Iterable[SegmentKey]) -> int:
        """Drop segments; return the tokens that are free then."""
        with self._lock:
            self._store.release(keys)
            return self._store.free_tokens

    def fill(self, key: SegmentKey, num_tokens: int) -> int:
        """Fill a segment with random keys and values; return the tokens that are free then.

        Raises:
            InvalidRequest: the shard serves routers.
        """
        if not self._takes_synthetic:
            raise InvalidRequest("expected a shard started with --synthetic, found one that serves: start another")
        with self._lock, torch.inference_mode():
            self._store.fill(key, num_tokens)
            return self._store.free_tokens

    def describe(self) -> context_pb2.DescribeResponse:
        """Tell what is held."""
        with self._lock:
            return self._describe()

    def close(self) -> None:
        """Stop watching leases. Idempotent."""
        self._closing.set()
        self._thread.join()

    def _describe(self) -> context_pb2.DescribeResponse:
        store = self._store
        return context_pb2.DescribeResponse(
            shard_id=self.shard_id,
            model_fingerprint=self.fingerprint,
            total_tokens=store.total_tokens,
            free_tokens=store.free_tokens,
            token_bytes=store.layout.global_token_bytes,
            num_segments=store.num_segments,
        )

    def _expire(self) -> None:
        while not self._closing.wait(_EXPIRE_EVERY_S):
            with self._lock:
                for router_id in self._leases.expire(time.monotonic()):
                    self._store.release((router_id, each) for each in self._store.owned_by(router_id))
