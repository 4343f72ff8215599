"""An expert group that grows and shrinks while streams run: none fails, none says anything else.

Its new replicas start in processes that were kept ready, as far as there are any, and copy their weights from those
that serve: what they compute is in the streams.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from benchmarks.chaos.application import Application
from benchmarks.chaos.processes import Part, processes_of, title_of
from cluster.launch.processes import descendants
from cluster.warm_process import SPARE
from tests.e2e.reflected_client import ReflectedClient, to_dict
from tests.e2e.served import served

pytestmark = pytest.mark.timeout(600)

SERVICE = "herd.inference.v1.InferenceService"
GENERATE = f"{SERVICE}/Generate"
PROMPTS = ("import os", "def main():", "The list", "for each in")
# A replica that computes 2 % of its time is in full use, so that a few streams keep any number of them busy; a token
# or two a second do not.
SETTINGS = (
    "scaling.experts_max_replicas=3",
    "scaling.experts_use=0.02",
    "scaling.down_after_s=2",
    "experts.copy_from_peers=always",
    "experts.warm_spares=1",
    "limits.health_timeout_s=25",  # beside other tests it may take a while to say how many there are
)


@pytest.fixture(scope="module")
def herd() -> Iterator[Application]:
    """`herd serve` that may scale its experts."""
    with served(*SETTINGS) as application:
        yield application


class Streams:
    """Streams on end, in threads, each compared with what was said when nothing scaled.

    Args:
        address: of the gRPC API.
        expected: tokens by prompt.
    """

    def __init__(self, address: str, expected: dict[str, list[int]]) -> None:
        self._address = address
        self._expected = expected
        self.num_done = 0
        self.failures: list[str] = []

    @contextmanager
    def run(self, num_threads: int, pause_s: float) -> Iterator[None]:
        """Keep threads busy inside the context, each resting `pause_s` between two streams."""
        stopping = threading.Event()
        threads = [threading.Thread(target=self._loop, args=(index, pause_s, stopping)) for index in range(num_threads)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stopping.set()
            for thread in threads:
                thread.join()

    def _loop(self, index: int, pause_s: float, stopping: threading.Event) -> None:
        with ReflectedClient(self._address) as client:
            prompts = list(self._expected)[index % len(PROMPTS) :] + list(self._expected)[: index % len(PROMPTS)]
            while not stopping.is_set():
                for prompt in prompts:
                    try:
                        found = tokens_of(client, prompt, len(self._expected[prompt]))
                        if found != self._expected[prompt]:
                            self.failures.append(f"{prompt!r}: {found} instead of {self._expected[prompt]}")
                        self.num_done += 1
                    except Exception as error:  # noqa: BLE001  whatever it is, the test tells
                        self.failures.append(f"{prompt!r}: {error!r}")
                    if stopping.wait(pause_s):
                        return


def tokens_of(client: ReflectedClient, prompt: str, count: int, timeout_s: float = 60) -> list[int]:
    stopping = {"max_tokens": count, "ignore_eos": True}
    events = client.stream(GENERATE, timeout_s, prompt=prompt, stopping=stopping, sampling={"temperature": 0})
    return [token for event in events for token in to_dict(event).get("delta", {}).get("token_ids", [])]


def replicas(client: ReflectedClient, groups: str = "Experts-0") -> set[str]:
    """Return the names of the replicas of groups whose names begin so."""
    found = client.call(f"{SERVICE}/GetServerInfo")["expert_replicas"]
    return {replica["replica_id"] for replica in found if replica["group"].startswith(groups)}


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + timeout_s, what
        time.sleep(0.1)
    return time.monotonic() - began


def starts(client: ReflectedClient) -> dict[str, str]:
    """Return what replicas said about their start, by their name."""
    events = client.call(f"{SERVICE}/GetServerInfo")["events"]
    return {each["subject"]: each["text"] for each in events if each["text"].startswith("started: ")}


def spare_pids(herd: Application) -> set[int]:
    """Return the processes that are kept ready and have imported everything."""
    return {pid for pid in descendants(herd.pid) if title_of(pid).startswith(f"{SPARE})")}


def test_an_expert_group_grows_to_three_and_shrinks_to_one_without_a_stream_that_fails_or_differs(herd):
    with ReflectedClient(herd.grpc_address) as client:
        first = replicas(client, "Experts-")
        assert len(replicas(client)) == 1
        # Before anything is asked: what the first streams take may be load enough for a second replica.
        wait_until(lambda: len(spare_pids(herd)) == 1, 120, "expected one spare")
        time.sleep(1)  # so long it has to be idle before anybody calls it warm
        spares = spare_pids(herd)
        assert len(spares) == 1
        expected = {prompt: tokens_of(client, prompt, 48) for prompt in PROMPTS}
        busy = Streams(herd.grpc_address, expected)
        with busy.run(num_threads=6, pause_s=0.0):
            grown_s = wait_until(lambda: len(replicas(client)) == 3, 120, "expected 3 replicas under load")
            wait_until(lambda: len(starts(client).keys() - first) >= 2, 120, "expected both to report their start")
            grown = [text for name, text in starts(client).items() if name not in first]
            assert spares < {each.pid for each in processes_of(herd.pid, Part.EXPERT)}
            time.sleep(3)  # all three serve for a while
        quiet = Streams(herd.grpc_address, {prompt: tokens[:1] for prompt, tokens in expected.items()})
        with quiet.run(num_threads=1, pause_s=1.0):
            shrunk_s = wait_until(
                lambda: len(replicas(client)) == 1, 120, "expected 1 replica when there is little to do"
            )
            time.sleep(3)
    print(f"1 to 3 in {grown_s:.1f} s, 3 to 1 in {shrunk_s:.1f} s; {busy.num_done} + {quiet.num_done} streams")
    assert not busy.failures + quiet.failures
    assert busy.num_done > 0
    assert quiet.num_done > 0
    assert all("copied from live replicas" in text for text in grown), grown
    assert any("warm process" in text for text in grown), grown
    wait_until(lambda: len(spare_pids(herd)) == 1, 120, "expected another spare instead")
