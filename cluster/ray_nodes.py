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


def drain_node(node_id: str, why: str, deadline_s: float | None = None) -> None:
    """Mark a node as draining, until it ends. Idempotent, but that the last call's deadline holds.

    Args:
        node_id: Ray's name for it.
        why: for people.
        deadline_s: when it will be ended, in seconds since 1970: Ray Serve stops replicas there in time, whether or not
            others have taken their places. None: that is not known.

    Raises:
        RayError: Ray does not answer in time, or refuses.
    """
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # the only one that is never refused
    is_accepted, message = _client().drain_node(
        node_id, reason, why, int((deadline_s or 0) * 1000), timeout=_CALL_TIMEOUT_S
    )
    if not is_accepted:
        raise RayError(message)


def _client() -> Any:
    return _client_of(ray.get_runtime_context().gcs_address)


@lru_cache(maxsize=1)
def _client_of(address: str) -> Any:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # it is compiled

    return GcsClient(address=address)


class _DrainingNodes:
    """A thread that asks which nodes drain, one for all in this process who want to know."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._followers: list[Callable[[frozenset[str]], None]] = []
        self._known: frozenset[str] = frozenset()
        self._thread = threading.Thread(target=self._run, name="draining-nodes", daemon=True)

    def add(self, on_change: Callable[[frozenset[str]], None]) -> None:
        with self._lock:
            self._followers.append(on_change)
            if self._known:
                on_change(self._known)
            if len(self._followers) == 1:
                self._thread.start()

    def _run(self) -> None:
        heard_at = time.monotonic()
        while True:
            try:
                found = draining_nodes()
            except RayError as error:
                _LOG.info("could not ask which nodes drain, for %.0f s: %s", time.monotonic() - heard_at, error)
            else:
                heard_at = time.monotonic()
                self._tell(found)
            time.sleep(_PERIOD_S)

    def _tell(self, found: frozenset[str]) -> None:
        with self._lock:
            if found == self._known:
                return
            self._known = found
            for on_change in self._followers:
                on_change(found)


_draining_nodes = _DrainingNodes()


def follow_draining_nodes(on_change: Callable[[frozenset[str]], None]) -> None:
    """Have a function called with the ids of the nodes that drain, whenever there are others, until this process ends.

    Args:
        on_change: called from a thread, at first when one drains; it must not block, nor raise.
    """
    _draining_nodes.add(on_change)
