"""The engine over gRPC while its replicas come, go, hang and refuse: every request ends, and none with other tokens."""

from __future__ import annotations

import queue
import random
import threading

import pytest

from protos import errors
from router.engine import Engine
from router.limits import EngineLimits
from router.placement import Placement
from router.request import Ended, GenerationRequest, SamplingParams, TokenChosen
from router.transport.grpc import GrpcTransport
from router.transport.local import LocalTransport
from router.transport.timeouts import DispatchTimeouts
from tests.router.scripted_replica import ScriptedReplica
from tests.tiny import TinyWeights, tiny_decoder

WAIT_S = 60
GROUPS = [(0, 1, 2, 3), (0, 1), (2, 3), (0, 2)]
LIMITS = EngineLimits(context_length=64, kv_bytes=10_000_000, slots=4, step_tokens=16)


class Trouble:
    """Does one thing after the other to replicas and to the streams that lead to them, until stopped."""

    def __init__(self, replicas: list[ScriptedReplica], transport: GrpcTransport, seed: int) -> None:
        self._replicas = replicas
        self._transport = transport
        self._random = random.Random(seed)
        self._version = 1
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def place(self, left_out: ScriptedReplica | None = None) -> None:
        self._version += 1
        holders = tuple(replica.holder for replica in self._replicas if replica is not left_out)
        self._transport.update(Placement(version=self._version, holders=holders))

    def _run(self) -> None:
        while not self._stopping.wait(self._random.uniform(0.01, 0.08)):
            replica = self._random.choice(self._replicas)
            self._random.choice([self._restart, self._reset, self._refuse, self.place])(replica)
        self.place()

    def _restart(self, replica: ScriptedReplica) -> None:
        replica.stop()
        replica.start()

    def _reset(self, replica: ScriptedReplica) -> None:
        if stream := self._transport.stream(replica.replica_id):
            stream.reset()

    def _refuse(self, replica: ScriptedReplica) -> None:
        replica.failures = [
            errors.Draining("restarts"),
            errors.DeadlineExceeded("late"),
            errors.StalePlacement("moved"),
        ]


@pytest.fixture
def engines():
    """An engine over gRPC in trouble, and one with its experts at hand."""
    decoder, weights = tiny_decoder(experts_per_token=2)
    replicas = [ScriptedReplica(f"replica-{i}", group, TinyWeights().run_experts) for i, group in enumerate(GROUPS)]
    timeouts = DispatchTimeouts(answer_s=1.0, patience_s=WAIT_S)
    transport = GrpcTransport(router_id="test", fingerprint="f00d", timeouts=timeouts)
    transport.update(Placement(version=1, holders=tuple(replica.holder for replica in replicas)))
    engines = [Engine(decoder, transport, LIMITS), Engine(decoder, LocalTransport(weights.run_experts), LIMITS)]
    for engine in engines:
        engine.start()
    trouble = Trouble(replicas, transport, seed=5)
    yield engines
    trouble.stop()
    for engine in engines:
        engine.stop()
    transport.close()
    for replica in replicas:
        replica.stop()


def ask(engine: Engine, prompt: tuple[int, ...]) -> queue.Queue:
    events: queue.Queue = queue.Queue()
    request = GenerationRequest(
        request_id=str(prompt), prompt_ids=prompt, max_tokens=12, sampling=SamplingParams(temperature=0.0)
    )
    engine.submit(request, events.put)
    return events


def answer(events: queue.Queue) -> tuple[list[int], Ended]:
    tokens = []
    while not isinstance(event := events.get(timeout=WAIT_S), Ended):
        tokens += [event.token_id] if isinstance(event, TokenChosen) else []
    return tokens, event


def test_every_request_gets_its_own_tokens_whatever_becomes_of_the_replicas(engines):
    prompts = [tuple((7 * i + j) % 90 + 3 for j in range(1 + i % 20)) for i in range(30)]
    in_trouble, at_hand = [[ask(engine, prompt) for prompt in prompts] for engine in engines]
    for prompt, found, expected in zip(prompts, in_trouble, at_hand, strict=True):
        assert answer(found) == answer(expected), prompt
        assert found.empty()
    assert engines[0].load().generated_tokens == 30 * 12
