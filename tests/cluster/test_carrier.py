"""Sequences between a front door and a router: the client that speaks through Ray Serve, before a real engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import pytest

from cluster.carrier import pack, unpack
from cluster.carrier_receiver import Inbox, hold_s
from cluster.carrier_sender import CarrierSender
from cluster.local_router_client import LocalRouterClient
from cluster.outbox import Outbox
from cluster.router_client import RouterLoad
from protos.errors import InvalidRequest, NoReplica, ReplicaUnavailable, ServingError
from router.engine import Engine
from router.limits import EngineLimits
from router.request import Ended, EngineEvent, GenerationRequest, PromptDone, SamplingParams, TokenChosen, TokenLogprob
from router.step_watch import StepWatch
from router.transport.local import LocalTransport
from tests.cluster.in_process_handle import InProcessHandle
from tests.router.local_engine import local_engine
from tests.tiny import tiny_decoder

# Importing Ray Serve warns of its own use of pydantic; so the client is imported in here.
pytestmark = pytest.mark.filterwarnings("ignore")

NAME = "router-1"
WAIT_S = 120


class RouterReplica:
    """The methods of the Router deployment."""

    def __init__(self, engine: Engine, stuck_after_s: float = 3600, **options: float) -> None:
        self.engine = engine
        self.sender = CarrierSender(engine, StepWatch(engine, stuck_after_s), NAME, **options)
        self.was_careful = False
        self.accepts_nothing = False

    async def generate(
        self, request: GenerationRequest, door_id: str, is_careful: bool
    ) -> AsyncGenerator[str | ServingError, None]:
        self.was_careful = is_careful
        if self.accepts_nothing:
            await asyncio.get_running_loop().create_future()
        try:
            async with aclosing(self.sender.generate(request, door_id)) as accepted:
                async for name in accepted:
                    yield name
        except ServingError as error:
            yield error

    async def load(self) -> RouterLoad:
        if self.accepts_nothing:
            await asyncio.get_running_loop().create_future()
        return RouterLoad(replica_id=NAME, load=self.engine.load())

    async def carry(self, replica_id: str, door_id: str) -> AsyncGenerator[Any, None]:
        assert replica_id == NAME
        async with aclosing(self.sender.carry(door_id)) as batches:
            async for batch in batches:
                yield batch


@pytest.fixture(scope="module")
def engine():
    decoder, weights = tiny_decoder()
    limits = EngineLimits(context_length=128, kv_bytes=10_000_000, slots=4, step_tokens=16)
    engine = Engine(decoder, LocalTransport(weights.run_experts), limits)
    engine.start()
    yield engine
    engine.stop()


def run(
    test: Callable[..., Coroutine[Any, Any, None]],
    engine: Engine,
    client_options: dict[str, float] | None = None,
    **options: float,
) -> None:
    """Run a test with a client and the handle it speaks through."""
    from cluster.serve_router_client import ServeRouterClient

    async def timed() -> None:
        async with asyncio.timeout(WAIT_S):
            handle = InProcessHandle(RouterReplica(engine, **options))
            await test(ServeRouterClient(handle, **(client_options or {})), handle)
            for call in handle.calls:
                call.cancel()

    asyncio.run(timed())


def request(name: str, max_tokens: int = 12, **fields: Any) -> GenerationRequest:
    sampling = SamplingParams(temperature=0.0)
    return GenerationRequest(request_id=name, prompt_ids=(5, 6, 7), max_tokens=max_tokens, sampling=sampling, **fields)


async def events_of(client, asked: GenerationRequest) -> list[EngineEvent]:
    async with aclosing(client.generate(asked)) as batches:
        return [event async for batch in batches for event in batch]


async def until_idle(engine: Engine) -> None:
    while engine.load().running or engine.load().waiting:  # noqa: ASYNC110  the engine has its own thread
        await asyncio.sleep(0.005)


def test_events_are_those_of_the_engine(engine):
    async def test(client, handle):
        asked = [request(f"same-{index}", max_tokens=12 + index) for index in range(3)]
        found = await asyncio.gather(*(events_of(client, each) for each in asked))
        local = LocalRouterClient(engine)
        expected = [await events_of(local, each) for each in asked]
        assert found == expected
        assert [call.method_name for call in handle.calls].count("carry") == 1

    run(test, engine)


def test_a_sequences_call_is_left_to_end_by_itself(engine):
    async def test(client, handle):
        await events_of(client, request("ends"))
        (call,) = (each for each in handle.calls if each.method_name == "generate")
        await call._running
        assert not call._running.cancelled()

    run(test, engine)


def test_a_refusal_is_raised_in_place_of_the_first_item(engine):
    async def test(client, handle):
        with pytest.raises(InvalidRequest):
            await events_of(client, request("refused", max_tokens=0))

    run(test, engine)


def test_closing_frees_what_the_sequence_holds_and_no_other(engine):
    async def test(client, handle):
        other = asyncio.create_task(events_of(client, request("other", max_tokens=100)))
        async with aclosing(client.generate(request("closed", max_tokens=120))) as batches:
            while not await anext(batches):
                pass
        assert len([event for event in await other if isinstance(event, TokenChosen)]) > 90
        await until_idle(engine)

    run(test, engine)


def test_a_broken_carrier_ends_its_sequences_on_both_sides(engine):
    async def test(client, handle):
        async with aclosing(client.generate(request("cut", max_tokens=120))) as batches:
            await anext(batches)
            await anext(batches)
            (carrier,) = (each for each in handle.calls if each.method_name == "carry")
            carrier.fail(ReplicaUnavailable("gone"))
            with pytest.raises(ReplicaUnavailable):
                async for _ in batches:
                    pass
        await until_idle(engine)
        assert isinstance((await events_of(client, request("next")))[-1], Ended)

    run(test, engine)


def test_a_broken_call_ends_its_sequence(engine):
    async def test(client, handle):
        async with aclosing(client.generate(request("cut", max_tokens=120))) as batches:
            await anext(batches)
            (call,) = (each for each in handle.calls if each.method_name == "generate")
            from ray.exceptions import ActorDiedError

            call.fail(ActorDiedError())
            with pytest.raises(ReplicaUnavailable):
                async for _ in batches:
                    pass
        await until_idle(engine)

    run(test, engine)


def test_a_carrier_ends_when_idle_and_another_begins_when_needed(engine):
    async def test(client, handle):
        first = await events_of(client, request("first"))
        (carrier,) = (each for each in handle.calls if each.method_name == "carry")
        await carrier._running
        assert await events_of(client, request("second")) == first
        assert [call.method_name for call in handle.calls].count("carry") == 2

    run(test, engine, idle_s=0.01, heartbeat_s=0.01)


def test_an_idle_time_shorter_than_a_step_loses_nothing(engine):
    async def test(client, handle):
        answers = await asyncio.gather(*(events_of(client, request(f"busy-{index}")) for index in range(12)))
        assert all(answer == answers[0] for answer in answers)

    run(test, engine, idle_s=0.0, heartbeat_s=0.0)


def test_a_carrier_without_events_says_so():
    async def test(engine):
        sender = CarrierSender(engine, StepWatch(engine, 3600), NAME, heartbeat_s=0.001)
        async with (
            aclosing(sender.generate(request("waits"), "door")) as accepted,
            aclosing(sender.carry("door")) as batches,
        ):
            assert await anext(accepted) == NAME
            assert [await anext(batches) for _ in range(5)] == [[]] * 5

    with local_engine() as held:
        held.transport.gate.clear()
        asyncio.run(test(held.engine))


def test_a_router_that_falls_silent_is_taken_for_gone_and_frees_its_sequences():
    async def test(client, handle):
        async with aclosing(client.generate(request("silent", max_tokens=100))) as batches:
            with pytest.raises(ReplicaUnavailable, match="silent"):
                async for _ in batches:
                    pass
        calls = [call._running for call in handle.calls]
        assert len(calls) == 2
        await asyncio.wait(calls)
        async with aclosing(client.generate(request("next"))) as batches:
            await anext(batches)
            assert handle._replica.was_careful
        await until_idle(held.engine)

    with local_engine() as held:
        held.transport.gate.clear()
        run(test, held.engine, {"silence_s": 0.05}, heartbeat_s=1000)


def test_a_router_whose_carrier_beats_may_take_its_time():
    async def test(client, handle):
        waiting = asyncio.create_task(events_of(client, request("slow")))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 1.0)
        held.transport.gate.set()
        assert isinstance((await waiting)[-1], Ended)
        assert not handle._replica.was_careful

    with local_engine() as held:
        held.transport.gate.clear()
        run(test, held.engine, {"silence_s": 0.5}, heartbeat_s=0.01)


def test_a_router_whose_step_is_stuck_gives_its_sequences_away_and_takes_none_until_it_gets_on():
    async def test(client, handle):
        with pytest.raises(ReplicaUnavailable, match="found it stuck"):
            await events_of(client, request("first"))
        with pytest.raises(ReplicaUnavailable, match="found it stuck"):
            await events_of(client, request("second"))
        returns.set()
        await until_idle(held.engine)
        assert isinstance((await events_of(client, request("third")))[-1], Ended)

    returns = threading.Event()
    with local_engine() as held:
        held.transport.watch = lambda: returns.wait(WAIT_S)
        run(test, held.engine, stuck_after_s=0.2, heartbeat_s=0.01)


def test_a_router_that_waits_for_experts_is_not_stuck():
    async def test(client, handle):
        waiting = asyncio.create_task(events_of(client, request("waits")))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 1.0)
        held.transport.gate.set()
        assert isinstance((await waiting)[-1], Ended)

    with local_engine() as held:
        held.transport.gate.clear()
        run(test, held.engine, stuck_after_s=0.5, heartbeat_s=0.01)


def test_a_router_that_does_not_accept_in_time_is_given_up(engine):
    async def test(client, handle):
        handle._replica.accepts_nothing = True
        with pytest.raises(ReplicaUnavailable, match="accept the sequence within"):
            await events_of(client, request("unheard"))
        (call,) = handle.calls
        await asyncio.wait([call._running])
        assert call._running.cancelled()

    run(test, engine, {"accept_s": 0.02})


def test_a_sequence_waits_for_a_router_to_start_where_there_may_be_none(engine):
    async def test(client, handle):
        handle.runs.clear()
        waiting = asyncio.create_task(events_of(client, request("early")))
        await asyncio.sleep(1.2)  # more than twice as long as a router has
        handle.runs.set()
        assert isinstance((await waiting)[-1], Ended)
        assert [call.method_name for call in handle.calls].count("generate") == 1

    run(test, engine, {"accept_s": 0.5, "wake_s": 100.0})


@pytest.mark.parametrize(("wake_s", "timeout_s"), [(0.06, None), (0.06, 100.0), (100.0, 0.06)])
def test_a_router_that_does_not_start_in_time_is_told_before_the_sequences_own_deadline(engine, wake_s, timeout_s):
    async def test(client, handle):
        handle.runs.clear()
        with pytest.raises(NoReplica, match="expected a router to start within"):
            await events_of(client, request("lonely", timeout_s=timeout_s))
        (call,) = handle.calls
        await asyncio.wait([call._running])
        assert call._running.cancelled()

    run(test, engine, {"accept_s": 0.02, "wake_s": wake_s})


def test_a_router_that_runs_and_does_not_accept_is_given_up_where_there_may_be_none(engine):
    async def test(client, handle):
        handle._replica.accepts_nothing = True
        with pytest.raises(ReplicaUnavailable, match="accept the sequence within"):
            await events_of(client, request("unheard"))

    run(test, engine, {"accept_s": 0.02, "wake_s": 100.0})


def test_that_none_runs_is_an_error_only_where_there_is_always_one(engine):
    async def fails(client, handle):
        assert [each.replica_id for each in await client.load()] == [NAME]
        handle.runs.clear()
        with pytest.raises(NoReplica):
            await client.load()

    async def rests(client, handle):
        assert [each.replica_id for each in await client.load()] == [NAME]
        handle.runs.clear()
        assert await client.load() == ()

    async def hangs(client, handle):
        handle._replica.accepts_nothing = True
        with pytest.raises(NoReplica):
            await client.load()

    run(fails, engine)
    run(rests, engine, {"wake_s": 100.0})
    run(hangs, engine, {"wake_s": 100.0})


def test_a_call_that_is_cancelled_at_the_router_does_not_cancel_its_caller(engine):
    async def test(client, handle):
        async with aclosing(client.generate(request("cut", max_tokens=120))) as batches:
            await anext(batches)
            (call,) = (each for each in handle.calls if each.method_name == "generate")
            call.fail(asyncio.CancelledError())
            with pytest.raises(ReplicaUnavailable, match="cancelled"):
                async for _ in batches:
                    pass
        await until_idle(engine)

    run(test, engine)


def test_tokens_travel_as_their_ids_and_all_else_whole():
    scored = TokenChosen(token_id=4, logprob=TokenLogprob(token_id=4, logprob=-1.0))
    events = [PromptDone(), TokenChosen(token_id=0), scored, Ended(reason="stop")]
    ((request_id, packed),) = pack({"one": events})
    assert (request_id, packed[1]) == ("one", 0)
    assert unpack(packed) == events


def test_an_outbox_gives_what_came_before_the_loop_turned_at_once():
    async def test():
        outbox = Outbox()
        sent = [TokenChosen(token_id=index) for index in range(100)]
        await asyncio.to_thread(lambda: [outbox.put(str(event.token_id % 2), event) for event in sent])
        assert await outbox.take() == {"0": sent[0::2], "1": sent[1::2]}

    asyncio.run(test())


@pytest.mark.parametrize(("streams", "hold_ms"), [(0, 0), (1, 2), (32, 64), (50, 100), (1000, 100)])
def test_the_more_streams_the_longer_a_message_may_be_held(streams, hold_ms):
    assert hold_s(streams) == pytest.approx(hold_ms / 1000)


def test_the_first_events_and_the_last_one_are_never_held():
    async def test():
        inbox = Inbox()
        inbox.hold([PromptDone(), TokenChosen(token_id=1)])
        assert await inbox.take() == [PromptDone(), TokenChosen(token_id=1)]
        inbox.hold([TokenChosen(token_id=2)])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(inbox.take(), 0.01)
        inbox.hold([TokenChosen(token_id=3), Ended(reason="length")])
        assert await inbox.take() == [TokenChosen(token_id=2), TokenChosen(token_id=3), Ended(reason="length")]
        assert inbox.is_done

    asyncio.run(test())
