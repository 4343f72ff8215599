"""Many streams at once over gRPC, each with its tokens and when they came."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.e2e.reflected_client import ReflectedClient, to_dict

GENERATE = "herd.inference.v1.InferenceService/Generate"


@dataclass(slots=True)
class Heard:
    """What a client heard of one stream."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = ""
    usage: dict[str, object] = field(default_factory=dict)
    longest_gap_s: float = 0.0
    """Between two messages with tokens."""


class Streams:
    """Context manager: runs requests at once, each in a thread; `heard` has their results after `wait`.

    Args:
        address: of the front door.
        requests: fields of GenerateRequest.
    """

    def __init__(self, address: str, requests: list[dict[str, object]]) -> None:
        self.heard = [Heard() for _ in requests]
        self._progress = threading.Condition()
        self._client = ReflectedClient(address)
        self._pool = ThreadPoolExecutor(len(requests))
        self._running = [self._pool.submit(self._follow, *each) for each in zip(requests, self.heard, strict=True)]
        for each in self._running:
            each.add_done_callback(self._wake)

    def wait_for_tokens(self, count: int, timeout_s: float = 120) -> None:
        """Wait until every stream has so many tokens; raise what a stream ended with before."""
        with self._progress:
            waited = self._progress.wait_for(lambda: self._failed() or self._all_have(count), timeout_s)
            for each in self._failed():
                each.result()
            assert waited, [len(each.ids) for each in self.heard]

    def wait(self, timeout_s: float = 240) -> list[Heard]:
        """Return what was heard once every stream has ended; raise what one of them failed with."""
        for each in self._running:
            each.result(timeout_s)
        return self.heard

    def _all_have(self, count: int) -> bool:
        return all(len(each.ids) >= count for each in self.heard)

    def _failed(self) -> list[Future[None]]:
        return [each for each in self._running if each.done() and each.exception()]

    def _wake(self, _: Future[None]) -> None:
        with self._progress:
            self._progress.notify()

    def _follow(self, fields: dict[str, object], heard: Heard) -> None:
        last_s = None
        for message in self._client.stream(GENERATE, timeout_s=240, **fields):
            event = to_dict(message)
            if delta := event.get("delta"):
                heard.text += delta["text"]
                heard.logprobs += [each["logprob"] for each in delta["logprobs"]]
                heard.finish_reason = delta.get("finish_reason", "")
                now_s = time.monotonic()
                if last_s is not None:
                    heard.longest_gap_s = max(heard.longest_gap_s, now_s - last_s)
                last_s = now_s
                with self._progress:
                    heard.ids += delta["token_ids"]
                    self._progress.notify()
            elif finished := event.get("finished"):
                heard.usage = finished["usage"]

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.channel.close()
        self._pool.shutdown()
