"""Floods of requests that are refused, and what one that is refused now and then notices of it: nothing."""

from __future__ import annotations

import threading
import time

import grpc
import pytest

from cluster.auth.guard import Guard
from cluster.auth.key_file import KeyEntry, add_key, key_hash
from cluster.refusal_pace import LONGEST_S, REFUSALS_PER_S, RefusalPace
from cluster.service import InferenceService
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1.inference_pb2_grpc import InferenceServiceStub
from tests.cluster.live_front_door import LiveFrontDoor

BODY = {"prompt": "Hello", "max_tokens": 2}
FLOOD = 3 * REFUSALS_PER_S


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def guarded(router, text_model, tmp_path):
    file = tmp_path / "keys.yaml"
    add_key(file, KeyEntry(name="alice", sha256=key_hash("a")))
    with LiveFrontDoor(InferenceService(text_model, router), Guard(file)) as live:
        yield live


def test_refusals_now_and_then_are_told_at_once():
    clock = Clock()
    pace = RefusalPace(clock)
    for _ in range(1000):
        assert pace.delay_s() == 0
        clock.now += 1.01 / REFUSALS_PER_S


def test_a_second_of_refusals_may_come_at_a_time():
    pace = RefusalPace(Clock())
    assert sum(pace.delay_s() for _ in range(REFUSALS_PER_S)) == pytest.approx(0, abs=1e-6)
    assert pace.delay_s() == pytest.approx(1 / REFUSALS_PER_S)


def test_one_that_asks_again_whenever_it_is_refused_is_held_to_the_pace():
    clock = Clock()
    pace = RefusalPace(clock)
    for _ in range(REFUSALS_PER_S):
        pace.delay_s()
    began = clock.now
    for _ in range(10 * REFUSALS_PER_S):
        clock.now += pace.delay_s()
    assert clock.now - began == pytest.approx(10, rel=0.01)


def test_nobody_waits_longer_than_a_second_and_all_is_well_soon_after():
    clock = Clock()
    pace = RefusalPace(clock)
    assert max(pace.delay_s() for _ in range(100_000)) == pytest.approx(LONGEST_S)
    clock.now += LONGEST_S + 1.1 / REFUSALS_PER_S
    assert pace.delay_s() == 0


def test_wrong_keys_are_refused_at_the_pace_and_the_right_one_is_served_meanwhile(guarded):
    began = time.monotonic()
    statuses: list[int] = []

    def flood() -> None:
        for _ in range(FLOOD):
            statuses.append(guarded.post("/v1/completions", BODY, Authorization="Bearer wrong")[0])

    thread = threading.Thread(target=flood)
    thread.start()
    while len(statuses) < FLOOD // 2:
        assert guarded.post("/v1/completions", BODY, Authorization="Bearer a")[0] == 200
    thread.join()
    assert statuses == [401] * FLOOD
    assert time.monotonic() - began >= (FLOOD - REFUSALS_PER_S) / REFUSALS_PER_S - 0.1


def test_over_grpc_too(guarded):
    began = time.monotonic()
    with grpc.insecure_channel(guarded.grpc_address) as channel:
        stub = InferenceServiceStub(channel)
        calls = [stub.Tokenize.future(pb.TokenizeRequest(prompt="a"), timeout=30) for _ in range(2 * REFUSALS_PER_S)]
        assert {each.code() for each in calls} == {grpc.StatusCode.UNAUTHENTICATED}
    assert time.monotonic() - began >= 0.9
