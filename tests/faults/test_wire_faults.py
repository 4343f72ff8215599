"""Messages between a router and a replica that are lost, late, doubled, out of order or wrong: no token changes.

Two real processes hold every expert; what is sent to one of them passes a proxy that harms it. Whatever it does, the
other can stand in: every request ends, in time, with the tokens of an engine that has its experts at hand.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from benchmarks.random_llama4 import RandomLlama4, write_random_llama4
from experts.weights import ExpertWeights
from models.checkpoint import open_checkpoint
from models.llama4.decoder import load_decoder
from router.engine import Engine
from router.limits import EngineLimits
from router.placement import Placement
from router.request import Ended, GenerationRequest, SamplingParams, TokenChosen
from router.transport.grpc import DispatchTimeouts, GrpcTransport
from router.transport.local import LocalTransport
from tests.faults.tampering_proxy import Corrupt, Delay, Drop, Duplicate, Plan, Reorder, TamperingProxy, Way
from tests.parity.transports import expert_processes

SMALL = RandomLlama4(
    layers=2, hidden=32, heads=4, kv_heads=2, head_size=8, experts=4, expert_width=24, vocab=96, max_positions=256
)
LIMITS = EngineLimits(context_length=64, kv_bytes=10_000_000, slots=8, step_tokens=32)
TIMEOUTS = DispatchTimeouts(answer_s=0.5, patience_s=20)
WITHIN_S = 30
"""A request that waits for one harmed message after the other takes longer than this."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wire") / "model"
    write_random_llama4(folder, SMALL)
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def decoder(checkpoint):
    return load_decoder(checkpoint, dtype=torch.float32)


@pytest.fixture(scope="module")
def holders(checkpoint):
    """Two expert processes, each with every expert."""
    everything = tuple(range(SMALL.experts))
    with expert_processes(checkpoint, [everything, everything]) as found:
        yield [replace(holder, replica_id=f"replica-{number}") for number, holder in enumerate(found)]


@pytest.fixture(scope="module")
def expected(checkpoint, decoder):
    """What an engine answers that has its experts at hand."""
    weights = ExpertWeights.load(checkpoint, range(SMALL.experts), torch.float32)
    with running(Engine(decoder, LocalTransport(weights.run), LIMITS)) as engine:
        return answers(engine)


def requests() -> list[GenerationRequest]:
    """Half greedy, half sampled, one as fixed as the other."""
    return [
        GenerationRequest(
            request_id=str(number),
            prompt_ids=tuple((7 * number + place) % 90 + 3 for place in range(1 + number)),
            max_tokens=20,
            sampling=SamplingParams(temperature=0.0) if number % 2 else SamplingParams(temperature=0.8, seed=number),
        )
        for number in range(12)
    ]


def answers(engine: Engine) -> list[tuple[list[int], Ended]]:
    """Ask everything at once; return each request's tokens and end."""
    give_up_at = time.monotonic() + WITHIN_S
    received: list[queue.Queue] = []
    for request in requests():
        received.append(queue.Queue())
        engine.submit(request, received[-1].put)
    return [answer(events, give_up_at) for events in received]


def answer(events: queue.Queue, give_up_at: float) -> tuple[list[int], Ended]:
    tokens: list[int] = []
    while not isinstance(event := events.get(timeout=max(give_up_at - time.monotonic(), 0.001)), Ended):
        tokens += [event.token_id] if isinstance(event, TokenChosen) else []
    return tokens, event


@contextmanager
def running(engine: Engine) -> Iterator[Engine]:
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


@contextmanager
def engine_behind(proxy: TamperingProxy, checkpoint, decoder, holders) -> Iterator[Engine]:
    """An engine that reaches the first holder through the proxy and the second one straight."""
    transport = GrpcTransport(router_id="test", fingerprint=checkpoint.fingerprint, timeouts=TIMEOUTS)
    through = replace(holders[0], address=proxy.address)
    transport.update(Placement(version=1, holders=(through, holders[1])))
    try:
        for replica_id in (through.replica_id, holders[1].replica_id):
            wait_ready(transport, replica_id)
        with running(Engine(decoder, transport, LIMITS)) as engine:
            yield engine
    finally:
        transport.close()


def wait_ready(transport: GrpcTransport, replica_id: str) -> None:
    give_up_at = time.monotonic() + WITHIN_S
    while not transport.stream(replica_id).is_ready:
        assert time.monotonic() < give_up_at
        time.sleep(0.005)


def every(step: int, harm_of) -> Plan:
    """Harm every so many messages; the n-th harm may depend on n."""
    return lambda way, number: harm_of(number // step) if number % step == step - 1 else None


def only(way: Way, plan: Plan) -> Plan:
    return lambda each, number: plan(each, number) if each is way else None


HARMS = {
    "dropped": every(13, lambda n: Drop()),
    "delayed": every(3, lambda n: Delay(0.1)),
    "delayed beyond the answer's due time": every(13, lambda n: Delay(1.0)),
    "duplicated": every(2, lambda n: Duplicate()),
    "reordered": every(2, lambda n: Reorder()),
    "corrupted in the tensor": every(5, lambda n: Corrupt(0.5)),
    "corrupted anywhere": every(5, lambda n: Corrupt(n * 0.137 % 1)),
}


@pytest.mark.parametrize("way", Way, ids=lambda way: way.value)
@pytest.mark.parametrize("harm", HARMS)
def test_every_token_is_right_in_time_when_messages_are(harm, way, checkpoint, decoder, holders, expected):
    with (
        TamperingProxy(holders[0].address, only(way, HARMS[harm])) as proxy,
        engine_behind(proxy, checkpoint, decoder, holders) as engine,
    ):
        assert answers(engine) == expected
    assert proxy.num_harmed


def test_every_token_is_right_in_time_when_a_replica_falls_silent(checkpoint, decoder, holders, expected):
    """Its connection stands, its dispatches are taken, nothing is ever answered."""
    with (
        TamperingProxy(holders[0].address, lambda way, number: Drop() if number > 5 else None) as proxy,
        engine_behind(proxy, checkpoint, decoder, holders) as engine,
    ):
        assert answers(engine) == expected
    assert proxy.num_harmed


def test_every_token_is_right_in_time_when_all_goes_wrong_at_once(checkpoint, decoder, holders, expected):
    harms = [Drop(), Delay(0.05), Duplicate(), Reorder(), Corrupt(0.5)]
    with (
        TamperingProxy(holders[0].address, every(4, lambda n: harms[n % len(harms)])) as proxy,
        engine_behind(proxy, checkpoint, decoder, holders) as engine,
    ):
        assert answers(engine) == expected
    assert proxy.num_harmed
