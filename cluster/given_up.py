"""Ends a replica's process that Ray has given up.

Ray Serve replaces a replica that hangs, and has Ray kill it. Ray does so by a message to the process. A process that is
stopped does not take it; Ray then holds it for dead, and never looks again. Once it goes on, nobody would end it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

import ray
from ray.exceptions import RayError
from ray.serve._private.constants import SERVE_NAMESPACE

_LOG = logging.getLogger(__name__)
_PERIOD_S = 5.0
_ENOUGH = 2
"""Looks in a row that find a replica unknown: one may mean nothing."""


def end_when_given_up() -> None:
    """End this process, a replica's, within seconds of its disappearance from among Ray's living actors."""
    name = ray.get_runtime_context().get_actor_name()

    def is_known() -> bool:
        try:
            ray.get_actor(name, SERVE_NAMESPACE)
        except ValueError:
            return False
        return True

    def end() -> None:
        _LOG.warning("%s was given up by Ray and has been replaced: its process ends", name)
        os._exit(1)  # nothing is left to save, and Ray's own way out waits for those who gave it up

    threading.Thread(target=watch_until_unknown, args=(is_known, end), name="given-up", daemon=True).start()


def watch_until_unknown(is_known: Callable[[], bool], end: Callable[[], None], period_s: float = _PERIOD_S) -> None:
    """Look from time to time; call `end` and return once a process that was known is not any more. Blocks until then.

    Args:
        is_known: tells whether it is known; may raise RayError where that cannot be found out.
        end: ends it.
        period_s: seconds between two looks.
    """
    was_known, num_unknown = False, 0
    pause = threading.Event()
    while num_unknown < _ENOUGH:
        pause.wait(period_s)
        try:
            if is_known():
                was_known, num_unknown = True, 0
            elif was_known:
                num_unknown += 1
        except (RayError, TimeoutError) as error:
            _LOG.info("could not find out whether Ray knows this process: %s", error)
    end()
