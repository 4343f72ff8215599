"""Ray's nodes, and the one call that marks one as draining. Ray keeps no promise about it: it is used nowhere else.

A node that drains gets no new replicas, and Ray Serve moves those it has: another one starts elsewhere, then the old
one is stopped. A node drains until it ends; nothing calls it back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ray
from ray.exceptions import RayError

_LOG = logging.getLogger(__name__)
_CALL_TIMEOUT_S = 2.0
_PERIOD_S = 0.5
ON_HEAD = {"node:__internal_head__": 0.001}
"""Resources of an actor that is to run on the head: a little of what only the head has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RayNode:
    """A node that lives."""

    node_id: str
    """Ray's name for it, in hex."""
    address: str
    """Of the machine or pod."""
    is_head: bool
    """Whether the cluster ends with it."""


def live_nodes() -> list[RayNode]:
    """Return the nodes of the cluster, those that drain too.

    Raises:
        RayError: Ray does not answer.
    """
    return [
        RayNode(
            node_id=each["NodeID"],
            address=each["NodeManagerAddress"],
            is_head=ON_HEAD.keys() <= each["Resources"].keys(),
        )
        for each in ray.nodes()
        if each["Alive"]
    ]


def draining_nodes() -> frozenset[str]:
    """Return the ids of the nodes that drain, whoever marked them: Herd, Ray's autoscaler, SIGTERM.

    Raises:
        RayError: Ray does not answer in time.
    """
    return frozenset(_client().get_draining_nodes(timeout=_CALL_TIMEOUT_S))


def drain_node(node_id: str, why: str) -> None:
    """Mark a node as draining, until it ends. Idempotent.

    There is no deadline: when the pod is told to end, its own Ray sets one.

    Raises:
        RayError: Ray does not answer in time, or refuses.
    """
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # the only one that is never refused
    is_accepted, message = _client().drain_node(node_id, reason, why, 0, timeout=_CALL_TIMEOUT_S)
    if not is_accepted:
        raise RayError(message)


def _client() -> Any:
    return _client_of(ray.get_runtime_context().gcs_address)


@lru_cache(maxsize=1)
def _client_of(address: str) -> Any:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # it is compiled

    return GcsClient(address=address)


class DrainingNodes:
    """A thread that knows which nodes drain.

    Args:
        on_change: called with their ids, from the thread, whenever there are others; it must not block for long.
    """

    def __init__(self, on_change: Callable[[frozenset[str]], None]) -> None:
        self._on_change = on_change
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="draining-nodes", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End. Blocks for some seconds at most. Idempotent."""
        self._stopping.set()
        self._thread.join(2 * _CALL_TIMEOUT_S)

    def _run(self) -> None:
        known: frozenset[str] = frozenset()
        heard_at = time.monotonic()
        while not self._stopping.wait(_PERIOD_S):
            try:
                found = draining_nodes()
            except RayError as error:
                _LOG.info("could not ask which nodes drain, for %.0f s: %s", time.monotonic() - heard_at, error)
                continue
            heard_at = time.monotonic()
            if found != known:
                known = found
                self._on_change(found)
