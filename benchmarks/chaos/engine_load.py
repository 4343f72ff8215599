"""The steady load of `load.py`, put to an engine in this process instead of a server."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

from protos.errors import ServingError
from protos.inference.v1 import inference_pb2 as pb
from router.engine import Engine
from router.request import Ended, EngineEvent, GenerationRequest, SamplingParams, TokenChosen

from .record import StreamRecord
from .requests import Request


class EngineLoad:
    """Workers in a thread each. `records` may be read at any time.

    Args:
        engine: a started engine.
        requests: what to ask.
        workers: streams at once.
        deadline_s: seconds after which a stream counts as failed.
    """

    def __init__(self, engine: Engine, requests: Sequence[Request], workers: int, deadline_s: float = 120.0) -> None:
        self.records: list[StreamRecord] = []
        self._engine = engine
        self._requests = requests
        self._workers = workers
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._names = itertools.count()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def run_each_once(self) -> list[StreamRecord]:
        """Ask every request once, and return what came, in the list's order. Blocks."""
        self._start(self._requests)
        self._join()
        records, self.records = sorted(self.records, key=lambda record: record.number), []
        return records

    def start(self) -> None:
        """Ask the list's requests again and again until `stop`."""
        self._start(itertools.cycle(self._requests))

    def stop(self) -> None:
        """Ask nothing more; return when the last stream has ended."""
        self._stopping.set()
        self._join()

    def _start(self, requests: Iterable[Request]) -> None:
        self._stopping.clear()
        source = iter(requests)
        self._threads = [
            threading.Thread(target=self._work, args=(number, source), name="load", daemon=True)
            for number in range(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()  # ends: every stream of the engine does, at its deadline at the latest

    def _work(self, worker: int, source: Iterator[Request]) -> None:
        while not self._stopping.is_set():
            with self._lock:
                request = next(source, None)
            if request is None:
                return
            record = StreamRecord(number=request.number, worker=worker, began_s=time.monotonic())
            self.records.append(record)
            self._stream(request, record)

    def _stream(self, request: Request, record: StreamRecord) -> None:
        events: queue.SimpleQueue[tuple[float, EngineEvent]] = queue.SimpleQueue()
        try:
            self._engine.submit(self._generation(request), lambda event: events.put((time.monotonic(), event)))
        except ServingError as error:
            record.error, record.ended_s = str(error), time.monotonic()
            return
        while record.ended_s is None:
            second, event = events.get()
            if isinstance(event, TokenChosen):
                record.arrivals.append((second, 1))
                record.token_ids.append(event.token_id)
                record.logprobs += [event.logprob.logprob] if event.logprob else []
            elif isinstance(event, Ended):
                record.error = None if event.error is None else f"{event.error.reason}: {event.error.message}"
                record.finish_reason = pb.FINISH_REASON_LENGTH if event.reason == "length" else pb.FINISH_REASON_STOP
                record.completion_tokens = len(record.token_ids)
                record.ended_s = second

    def _generation(self, request: Request) -> GenerationRequest:
        """Return a request as front doors hand it to routers."""
        greedy = SamplingParams(temperature=0.0)
        sampled = SamplingParams(temperature=0.8, top_p=0.95, seed=request.seed or 0)
        return GenerationRequest(
            request_id=f"chaos-{next(self._names)}",
            prompt_ids=request.prompt_ids,
            max_tokens=request.max_tokens,
            sampling=greedy if request.seed is None else sampled,
            logprobs=request.logprobs,
            timeout_s=self._deadline_s,
        )
