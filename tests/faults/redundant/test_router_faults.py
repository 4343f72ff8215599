"""Router processes that die and hang while clients read: every stream goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.request
from contextlib import ExitStack

import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.chaos.application import Application
from benchmarks.chaos.processes import Part, processes_of
from tests.faults.signals import stopped
from tests.faults.streams import Heard, Streams
from tests.faults.trial import wait_until

pytestmark = pytest.mark.timeout(900)

NUM_STREAMS = 16
MAX_TOKENS = 120
KILL_AT = 10
"""Tokens that every stream has when a router is lost."""

UNHEARD_S = 6.0
"""Longer than a router that hangs may be waited for, shorter than running requests have."""


def request_fields(index: int) -> dict[str, object]:
    """Return one of the requests: greedy, seeded and penalised in turn."""
    sampling = (
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": index},
        {"temperature": 0.8, "seed": index, "presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"temperature": 0.0, "repetition_penalty": 1.2},
    )[index % 4]
    return {
        "prompt": f"def f{index}(a):",
        "sampling": sampling,
        "stopping": {"max_tokens": MAX_TOKENS, "ignore_eos": True},
        "logprobs": 0,
    }


REQUESTS = [request_fields(index) for index in range(NUM_STREAMS)]


@pytest.fixture(scope="module")
def undisturbed(herd: Application) -> list[Heard]:
    """What the streams say when nothing happens."""
    with Streams(herd.grpc_address, REQUESTS) as streams:
        return streams.wait()


def assert_alike(found: list[Heard], expected: list[Heard]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.ids == other.ids
        assert (one.text, one.finish_reason, one.usage) == (other.text, other.finish_reason, other.usage)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)


def test_streams_outlive_a_router_that_is_killed(herd, undisturbed):
    replayed = samples(herd)["herd_replayed_sequences_total", ""]
    with Streams(herd.grpc_address, REQUESTS) as streams:
        streams.wait_for_tokens(KILL_AT)
        os.kill(router_pids(herd)[0], signal.SIGKILL)
        assert_alike(streams.wait(), undisturbed)
    assert samples(herd)["herd_replayed_sequences_total", ""] > replayed
    wait_for_idle_routers(herd)


def test_streams_outlive_a_router_that_hangs_and_it_drops_them_when_it_is_back(herd, undisturbed):
    wait_for_idle_routers(herd)
    with Streams(herd.grpc_address, REQUESTS) as streams:
        streams.wait_for_tokens(KILL_AT)
        with stopped(router_pids(herd)[0]):
            assert_alike(streams.wait(), undisturbed)
            # Nor does one router that hangs make the front door look dead, or keep new requests waiting for long.
            assert urllib.request.urlopen(f"{herd.base_url}/health", timeout=20).status == 200
            with Streams(herd.grpc_address, REQUESTS) as others:
                assert_alike(others.wait(), undisturbed)
    wait_for_idle_routers(herd)


def test_streams_outlive_all_routers_at_once(herd, undisturbed):
    wait_for_idle_routers(herd)
    with Streams(herd.grpc_address, REQUESTS) as streams:
        streams.wait_for_tokens(KILL_AT)
        for pid in router_pids(herd):
            os.kill(pid, signal.SIGKILL)
        assert_alike(streams.wait(), undisturbed)
    wait_for_idle_routers(herd)


def test_streams_have_their_time_to_finish_when_herd_ends_though_a_router_hangs(herd):
    """The last one: nothing serves after it."""
    wait_for_idle_routers(herd)
    with Streams(herd.grpc_address, REQUESTS[:4]) as streams, stopped(router_pids(herd)[0]):
        with ExitStack() as slow:
            streams.wait_for_tokens(1)
            for replica in processes_of(herd.pid, Part.EXPERT):
                slow.enter_context(stopped(replica.pid))
            assert any(len(each.ids) < MAX_TOKENS for each in streams.heard)
            herd.interrupt()
            wait_until(lambda: "ending:" in herd.output)
            threading.Event().wait(UNHEARD_S)
        assert [len(each.ids) for each in streams.wait()] == [MAX_TOKENS] * 4
    assert herd.wait() == 0, herd.output


def router_pids(herd: Application) -> list[int]:
    return [router.pid for router in processes_of(herd.pid, Part.ROUTER)]


def samples(herd: Application) -> dict[tuple[str, str], float]:
    """Return every metric's sample by its name and its one label's value, if it has one."""
    with urllib.request.urlopen(f"{herd.base_url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def wait_for_idle_routers(herd: Application) -> None:
    """Wait until two routers answer and nobody holds a slot or a page there."""
    give_up_at = time.monotonic() + 180
    while True:
        found = samples(herd)
        held = [found[each] for each in found if each[0] in ("herd_running_sequences", "herd_kv_used_bytes")]
        if len(held) == 4 and not any(held):
            return
        assert time.monotonic() < give_up_at, found
        time.sleep(0.1)
