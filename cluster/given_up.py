"""Ends a replica's process that Ray has given up.

Ray Serve replaces a replica that hangs, and has Ray kill it. Ray does so by a message to the process. A process that is
stopped does not take it; Ray then holds it for dead, and never looks again. Once it goes on, nobody would end it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve._private.constants import SERVE_NAMESPACE

_LOG = logging.getLogger(__name__)
_PERIOD_S = 5.0
_STOOD_STILL_S = 3.0
"""A pause that is so much longer than it should be means that this process was stopped: only then may it be given up
without its knowledge."""
_LOOKS = 12
"""Looks after that: a minute is longer than Ray Serve takes to replace a replica and Ray to kill it."""
_ENOUGH = 2
"""Looks in a row that find a replica unknown: one may mean nothing."""


def end_when_given_up() -> None:
    """End this process, a replica's, within seconds if Ray gave it up while it was stopped."""
    name = serve.get_replica_context().replica_id.to_full_id_str()

    def is_known() -> bool:
        # Not get_actor: it remembers, and is not told that an actor died by those who gave this process up.
        return any(
            actor["name"] == name and actor["namespace"] == SERVE_NAMESPACE
            for actor in ray.util.list_named_actors(all_namespaces=True)
        )

    def end() -> None:
        _LOG.warning("%s was given up by Ray and has been replaced: its process ends", name)
        os._exit(1)  # nothing is left to save, and Ray's own way out waits for those who gave it up

    watch = threading.Thread(target=watch_until_unknown, args=(_pause, is_known, end), name="given-up", daemon=True)
    watch.start()


def watch_until_unknown(pause: Callable[[], bool], is_known: Callable[[], bool], end: Callable[[], None]) -> None:
    """Call `end` and return once a process that was known is not any more. Blocks until then.

    Args:
        pause: waits; tells whether the process stood still meanwhile. Then it is looked for, otherwise it is not.
        is_known: tells whether it is known; may raise RayError where that cannot be found out.
        end: ends it.
    """
    was_known, num_unknown, looks_left = False, 0, 0
    while num_unknown < _ENOUGH:
        if pause():
            looks_left = _LOOKS
        if was_known and not looks_left:
            continue
        looks_left = max(looks_left - 1, 0)
        try:
            if is_known():
                was_known, num_unknown = True, 0
            elif was_known:
                num_unknown += 1
        except (RayError, TimeoutError) as error:
            _LOG.info("could not find out whether Ray knows this process: %s", error)
    end()


def _pause() -> bool:
    began = time.monotonic()
    time.sleep(_PERIOD_S)
    return time.monotonic() - began > _PERIOD_S + _STOOD_STILL_S
