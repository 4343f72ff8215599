"""Routers for long requests that come when one is asked for and go again, while short ones are served by others."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator

import pytest

from benchmarks.chaos.application import Application
from benchmarks.chaos.processes import Part, processes_of
from tests.e2e.demo_engine import greedy_tokens
from tests.e2e.reflected_client import ReflectedClient, to_dict
from tests.e2e.served import served
from tests.e2e.test_autoscaling import GENERATE, wait_until

pytestmark = pytest.mark.timeout(600)

WAKE_S = 180
SHORT_PAUSE_S = 0.2
"""Between two short requests: without it, they and what they start would leave a starting router no core."""
NUM_TOKENS = 8
LONG_PROMPT = [3 + index % 200 for index in range(1200)]
OTHER_LONG_PROMPT = LONG_PROMPT[::-1]  # no page of it is in a cache yet
SHORT_PROMPT = [5, 6, 7]
# Small steps: then even the demo model takes long enough over a prompt to tell of it. Not on idle cores alone: beside
# other tests there are none.
SETTINGS = (
    "long.from_tokens=1000",
    "long.min_replicas=0",
    "long.step_tokens=4",
    "long.priority=normal",
    "scaling.zero_after_s=3",
)


@pytest.fixture(scope="module")
def expected(demo_dir) -> list[list[int]]:
    """What the long prompts are continued with where there are no pools."""
    return greedy_tokens(demo_dir, [LONG_PROMPT, OTHER_LONG_PROMPT], NUM_TOKENS)


@pytest.fixture(scope="module")
def herd(expected) -> Iterator[Application]:
    """`herd serve` with routers for long requests, of which there may be none."""
    with served(*SETTINGS) as application:
        yield application


@pytest.fixture(scope="module")
def client(herd) -> Iterator[ReflectedClient]:
    with ReflectedClient(herd.grpc_address) as found:
        yield found


def events_of(client: ReflectedClient, prompt: list[int]) -> list[dict]:
    fields = {
        "token_ids": {"ids": prompt},
        "stopping": {"max_tokens": NUM_TOKENS, "ignore_eos": True},
        "sampling": {"temperature": 0},
    }
    return [to_dict(each) for each in client.stream(GENERATE, WAKE_S, **fields)]


def tokens_in(events: list[dict]) -> list[int]:
    return [token for event in events for token in event.get("delta", {}).get("token_ids", [])]


def long_routers(herd: Application) -> int:
    return len(processes_of(herd.pid, Part.LONG_ROUTER))


def wait_for_zero(herd: Application) -> None:
    wait_until(lambda: not long_routers(herd), 120, "expected no router for long requests any more")


def stream_over_http(herd: Application) -> tuple[list[int], list[dict]]:
    """Return the tokens and the progress of the other long prompt."""
    body = {"prompt": OTHER_LONG_PROMPT, "max_tokens": NUM_TOKENS, "ignore_eos": True, "temperature": 0}
    sent = json.dumps(body | {"stream": True, "return_token_ids": True})
    connection = http.client.HTTPConnection(f"localhost:{herd.http_port}", timeout=WAKE_S)
    connection.request("POST", "/v1/completions", sent, {"content-type": "application/json"})
    lines = connection.getresponse().read().decode().split("\n\n")
    connection.close()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    tokens = [token for chunk in chunks for choice in chunk["choices"] for token in choice["token_ids"]]
    return tokens, [json.loads(line.removeprefix(": progress ")) for line in lines if line.startswith(": progress ")]


class ShortRequests:
    """Context manager: asks for something short again and again, and counts."""

    def __init__(self, address: str) -> None:
        self.num_done = 0
        self.failures: list[str] = []
        self._address = address
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop)

    def __enter__(self) -> ShortRequests:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _loop(self) -> None:
        with ReflectedClient(self._address) as client:
            while not self._stopping.wait(SHORT_PAUSE_S):
                try:
                    assert len(tokens_in(events_of(client, SHORT_PROMPT))) == NUM_TOKENS
                    self.num_done += 1
                except Exception as error:  # noqa: BLE001  whatever it is, the test tells
                    self.failures.append(repr(error))


def test_a_long_request_starts_its_router_and_is_answered_as_without(herd, client, expected):
    wait_for_zero(herd)
    with ShortRequests(herd.grpc_address) as shorts:
        events = events_of(client, LONG_PROMPT)
    assert tokens_in(events) == expected[0]
    assert long_routers(herd) == 1
    reports = [each["progress"] for each in events if "progress" in each]
    assert any(0 < int(each["prompt_tokens_done"]) < len(LONG_PROMPT) for each in reports), reports
    assert not shorts.failures
    assert shorts.num_done > 1


def test_over_http_as_well_and_progress_is_a_comment(herd, expected):
    with ShortRequests(herd.grpc_address) as shorts:
        tokens, reports = stream_over_http(herd)
    assert tokens == expected[1]
    assert any(0 < each["prompt_tokens_done"] < len(LONG_PROMPT) for each in reports), reports
    assert not shorts.failures
    assert shorts.num_done > 1


def test_short_requests_start_no_router_for_long_ones(herd, client):
    wait_for_zero(herd)
    assert len(tokens_in(events_of(client, SHORT_PROMPT))) == NUM_TOKENS
    assert long_routers(herd) == 0
