"""Floods of refused requests and of connections, and what one that comes now and then notices of it: nothing."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

import grpc
import pytest

from cluster.auth.guard import Guard
from cluster.auth.key_file import KeyEntry, add_key, key_hash
from cluster.openai import http_server
from cluster.pace import BEAT_S, DEPTH_S, REFUSALS_PER_S, Pace
from cluster.service import InferenceService
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1.inference_pb2_grpc import InferenceServiceStub
from tests.clock import Clock
from tests.cluster.live_front_door import LiveFrontDoor
from tests.cluster.test_bounded_connection import connect

BODY = {"prompt": "Hello", "max_tokens": 2}
FLOOD = 3 * REFUSALS_PER_S
AT_A_TIME = round(REFUSALS_PER_S * DEPTH_S)


@pytest.fixture
def guarded(router, text_model, tmp_path):
    file = tmp_path / "keys.yaml"
    add_key(file, KeyEntry(name="alice", sha256=key_hash("a")))
    with LiveFrontDoor(InferenceService(text_model, router), Guard(file)) as live:
        yield live


def test_what_comes_now_and_then_does_not_wait():
    clock = Clock()
    pace = Pace(REFUSALS_PER_S, clock=clock)
    for _ in range(1000):
        assert pace.delay_s() == 0
        clock.now += 1.01 / REFUSALS_PER_S


def test_as_many_as_in_a_tenth_of_a_second_may_come_at_a_time():
    pace = Pace(REFUSALS_PER_S, clock=Clock())
    assert AT_A_TIME == REFUSALS_PER_S / 10
    assert sum(pace.delay_s() for _ in range(AT_A_TIME)) == pytest.approx(0, abs=1e-6)
    assert pace.delay_s() == pytest.approx(BEAT_S)


def test_those_that_wait_do_so_in_groups():
    pace = Pace(REFUSALS_PER_S, clock=Clock())
    beats = [pace.delay_s() / BEAT_S for _ in range(AT_A_TIME + REFUSALS_PER_S // 2)]
    groups = {round(each) for each in beats}
    assert beats == pytest.approx([round(each) for each in beats], abs=1e-6)
    assert max(groups) == len(groups) - 1 == pytest.approx(0.5 / BEAT_S, abs=1)


def test_one_that_comes_again_as_soon_as_it_may_is_held_to_the_pace():
    clock = Clock()
    pace = Pace(REFUSALS_PER_S, clock=clock)
    for _ in range(AT_A_TIME):
        pace.delay_s()
    began = clock.now
    for _ in range(10 * REFUSALS_PER_S):
        clock.now += pace.delay_s()
    assert clock.now - began == pytest.approx(10, rel=0.01)


def test_nobody_waits_longer_than_a_second_and_all_is_well_soon_after():
    clock = Clock()
    pace = Pace(REFUSALS_PER_S, clock=clock)
    assert 1 <= max(pace.delay_s() for _ in range(100_000)) < 1 + 2 * BEAT_S
    clock.now += 1 + 1.1 / REFUSALS_PER_S
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
    assert time.monotonic() - began >= (FLOOD - AT_A_TIME) / REFUSALS_PER_S - 0.1


def test_over_grpc_too(guarded):
    began = time.monotonic()
    with grpc.insecure_channel(guarded.grpc_address) as channel:
        stub = InferenceServiceStub(channel)
        calls = [stub.Tokenize.future(pb.TokenizeRequest(prompt="a"), timeout=30) for _ in range(2 * REFUSALS_PER_S)]
        assert {each.code() for each in calls} == {grpc.StatusCode.UNAUTHENTICATED}
    assert time.monotonic() - began >= 0.9


def test_a_flood_of_connections_is_taken_at_a_pace_and_each_is_served(router, text_model, monkeypatch):
    monkeypatch.setattr(http_server, "CONNECTIONS_PER_S", 20)
    with ExitStack() as stack:
        live = stack.enter_context(LiveFrontDoor(InferenceService(text_model, router)))
        began = time.monotonic()
        opened = [stack.enter_context(connect(live)) for _ in range(50)]
        for each in opened:
            each.sendall(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
        assert all(each.recv(15) == b"HTTP/1.1 200 OK" for each in opened)
        assert time.monotonic() - began >= 45 / 20 - 0.1
