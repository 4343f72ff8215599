"""`herd serve` is told to end while something hangs: whatever can finish in time does."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest

from benchmarks.chaos.application import Application
from benchmarks.chaos.processes import Part, processes_of
from tests.e2e.served import served
from tests.faults.signals import stopped
from tests.faults.streams import Streams
from tests.faults.trial import wait_until

pytestmark = pytest.mark.timeout(600)

MAX_TOKENS = 60
REQUESTS = [
    {
        "token_ids": {"ids": [5, 6, 7 + index]},
        "sampling": {"temperature": 0.0},
        "stopping": {"max_tokens": MAX_TOKENS, "ignore_eos": True},
    }
    for index in range(4)
]
UNHEARD_S = 6.0
"""Longer than a router that hangs may be waited for, shorter than running requests have."""


def pids(herd: Application, part: Part) -> list[int]:
    return [each.pid for each in processes_of(herd.pid, part)]


def test_streams_have_their_time_to_finish_though_a_router_hangs():
    with (
        served("router.replicas=2", "experts.lease_s=60") as herd,
        Streams(herd.grpc_address, REQUESTS) as streams,
        stopped(pids(herd, Part.ROUTER)[0]),
    ):
        with ExitStack() as slow:
            streams.wait_for_tokens(1)
            for pid in pids(herd, Part.EXPERT):
                slow.enter_context(stopped(pid))
            assert any(len(each.ids) < MAX_TOKENS for each in streams.heard)
            herd.interrupt()
            wait_until(lambda: "ending:" in herd.output)
            threading.Event().wait(UNHEARD_S)
        assert [len(each.ids) for each in streams.wait()] == [MAX_TOKENS] * len(REQUESTS)
        assert herd.wait() == 0, herd.output
