"""Sequences that outlive their routers: engines that stop under them, and scripts for what no engine does on demand."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import ExitStack, aclosing

import pytest

from cluster.limits import FrontDoorLimits
from cluster.local_router_client import LocalRouterClient
from cluster.replay import MOST_LOST, outliving_routers
from cluster.service import InferenceService
from cluster.service_events import Delta, Finished, Started
from cluster.validation import RequestFields, check_request
from protos.errors import (
    DeadlineExceeded,
    Draining,
    InternalError,
    NoReplica,
    Overloaded,
    ReplicaUnavailable,
    ServingError,
)
from router.request import Ended, EngineEvent, GenerationRequest, PromptDone, SamplingParams, TokenChosen
from tests.cluster.scripted_router import HOLD, ScriptedRouter, Step, says
from tests.router.local_engine import LocalEngine, local_engine

PROMPT = (5, 6, 7, 8, 9, 10, 11, 5, 6)
GREEDY = SamplingParams(temperature=0.0)
SAMPLINGS = {
    "greedy": GREEDY,
    "seeded": SamplingParams(temperature=1.2, top_p=0.95, seed=7),
    "presence and frequency": SamplingParams(
        temperature=1.0, presence_penalty=1.5, frequency_penalty=1.0, seed=2**63 + 5
    ),
    "greedy with every penalty": SamplingParams(
        temperature=0.0, presence_penalty=2.0, frequency_penalty=0.7, repetition_penalty=1.3
    ),
}


class EnginesInTurn:
    """Implements RouterClient over engines; each attempt goes to the next one, as if the others were busier."""

    def __init__(self, engines: Iterable[LocalEngine]) -> None:
        self._clients = [LocalRouterClient(each.engine) for each in engines]
        self.requests: list[GenerationRequest] = []

    def generate(self, request: GenerationRequest) -> AsyncGenerator[list[EngineEvent], None]:
        self.requests.append(request)
        return self._clients[min(len(self.requests), len(self._clients)) - 1].generate(request)


async def events_of(generate, request: GenerationRequest, on_replay=lambda: None) -> list[EngineEvent]:
    async with aclosing(outliving_routers(generate, request, on_replay)) as batches:
        return [event async for batch in batches for event in batch]


def stop_after(local: LocalEngine, num_tokens: int) -> None:
    """Let an engine compute so many tokens and then hang in a step, for `stop_when_held` to end."""
    local.hold_when(lambda: local.transport.num_tokens >= num_tokens)


async def stop_when_held(local: LocalEngine) -> None:
    assert await asyncio.to_thread(local.transport.waits.wait, 30)
    await asyncio.to_thread(local.engine.stop)


def run_over(num_tokens: Iterable[int], request: GenerationRequest) -> tuple[list[EngineEvent], EnginesInTurn]:
    """Generate over engines that stop after so many tokens each, and a last one that stays."""

    async def run(engines: list[LocalEngine]) -> tuple[list[EngineEvent], EnginesInTurn]:
        client = EnginesInTurn(engines)
        stops = [asyncio.create_task(stop_when_held(each)) for each in engines[:-1]]
        events = await events_of(client.generate, request)
        await asyncio.gather(*stops)
        return events, client

    with ExitStack() as stack:
        engines = []
        for count in num_tokens:
            engines.append(stack.enter_context(local_engine()))
            stop_after(engines[-1], count)
        engines.append(stack.enter_context(local_engine()))
        return asyncio.run(run(engines))


def assert_alike(found: list[EngineEvent], expected: list[EngineEvent]) -> None:
    """Compare events: logprobs to the last bits, for a prompt's tokens are multiplied in other numbers."""
    assert [type(each) for each in found] == [type(each) for each in expected]
    assert ids(found) == ids(expected)
    assert found[-1] == expected[-1]
    for one, other in zip(scores(found), scores(expected), strict=True):
        assert one.token_id == other.token_id
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [token for token, _ in one.top] == [token for token, _ in other.top]


def ids(events: list[EngineEvent]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, TokenChosen)]


def scores(events: list[EngineEvent]) -> list:
    prompt = [each for event in events if isinstance(event, PromptDone) for each in event.logprobs or ()]
    return prompt + [event.logprob for event in events if isinstance(event, TokenChosen) and event.logprob]


def request_for(sampling: SamplingParams = GREEDY, **fields) -> GenerationRequest:
    fields = {"prompt_ids": PROMPT, "max_tokens": 20, "logprobs": 2, "prompt_logprobs": 1} | fields
    return GenerationRequest(request_id="one", sampling=sampling, **fields)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("stops", [(1,), (12,), (13, 20)], ids=["in the prompt", "amid tokens", "twice"])
def test_a_sequence_goes_on_as_if_its_router_had_stayed(sampling, stops):
    request = request_for(sampling)
    expected, _ = run_over((), request)
    found, client = run_over(stops, request)
    assert_alike(found, expected)
    assert [each.request_id for each in client.requests] == ["one", "one~1", "one~2"][: len(stops) + 1]
    last = client.requests[-1]
    assert len(last.prompt_ids) - last.num_replayed == len(PROMPT)
    assert last.num_replayed + last.max_tokens == 20


def test_a_replay_asks_for_prompt_logprobs_only_while_they_have_not_come():
    for stop, asked in ((1, 1), (12, None)):
        _, client = run_over((stop,), request_for())
        assert client.requests[1].prompt_logprobs == asked


def test_a_stop_token_ends_a_replay_where_it_ended_the_first():
    expected, _ = run_over((), request_for())
    stop_id = ids(expected)[9]
    request = request_for(stop_ids=frozenset({stop_id}))
    found, _ = run_over((12,), request)
    assert ids(found) == ids(expected)[: ids(expected).index(stop_id)]
    assert found[-1] == Ended(reason="stop")


def test_closing_reaches_the_router_that_has_the_sequence_now():
    async def run(first: LocalEngine, second: LocalEngine) -> None:
        client = EnginesInTurn([first, second])
        stop = asyncio.create_task(stop_when_held(first))
        async with aclosing(outliving_routers(client.generate, request_for(max_tokens=100), lambda: None)) as batches:
            async for _ in batches:
                if second.transport.num_tokens > 20:
                    break
        await stop
        await asyncio.to_thread(second.wait_for, second.is_empty)

    with local_engine() as first, local_engine() as second:
        stop_after(first, 12)
        asyncio.run(run(first, second))


@pytest.mark.parametrize("stop", [1, 30])
def test_choices_logprobs_and_usage_are_those_of_an_undisturbed_request(id_model, stop):
    fields = RequestFields(
        prompts=[PROMPT, (3, 4)],
        num_choices=2,
        max_tokens=16,
        temperature=1.1,
        seed=11,
        frequency_penalty=0.5,
        logprobs=1,
        prompt_logprobs=0,
        ignore_eos=True,
    )

    async def answer(service: InferenceService) -> tuple[Started, dict, Finished]:
        async with aclosing(service.generate(check_request(fields, service.model, "asked"))) as events:
            started, *deltas, finished = [event async for event in events]
        choices: dict[int, list] = {choice: [] for choice in range(4)}
        reasons = {delta.choice: delta.finish_reason for delta in deltas if delta.finish_reason}
        for delta in deltas:
            assert isinstance(delta, Delta)
            assert [score.token_id for score in delta.logprobs] == list(delta.token_ids)
            choices[delta.choice] += delta.token_ids
        return started, {"ids": choices, "reasons": reasons}, finished

    async def disturbed(service: InferenceService, first: LocalEngine) -> tuple[Started, dict, Finished]:
        stopping = asyncio.create_task(stop_when_held(first))
        found = await answer(service)
        await stopping
        return found

    with local_engine() as first, local_engine() as second, local_engine() as alone:
        expected = asyncio.run(answer(InferenceService(id_model, LocalRouterClient(alone.engine))))
        stop_after(first, stop)
        first_then_second = FirstWhileItRuns(first, second)
        service = InferenceService(id_model, first_then_second)
        found = asyncio.run(disturbed(service, first))
    assert found[1:] == expected[1:]
    assert [len(each) for each in found[0].prompt_logprobs] == [len(each) for each in expected[0].prompt_logprobs]
    assert b"herd_replayed_sequences_total 4.0" in service.metrics.render((), ())
    assert (service.admission.num_sequences, service.admission.num_queued_prompt_tokens) == (0, 0)


class FirstWhileItRuns(LocalRouterClient):
    """Implements RouterClient over two engines: the first one until it refuses, then the second."""

    def __init__(self, first: LocalEngine, second: LocalEngine) -> None:
        super().__init__(first.engine)
        self._second = LocalRouterClient(second.engine)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[EngineEvent], None]:
        one = self._second if request.request_id.count("~") else super()
        async with aclosing(one.generate(request)) as batches:
            async for batch in batches:
                yield batch


def in_turn(*scripts) -> ScriptedRouter:
    """A router that follows a script for each attempt, the last one for all that come after."""
    left = list(scripts)
    return ScriptedRouter(lambda request: (left.pop(0) if len(left) > 1 else left[0])(request))


def lost(*token_ids: int, by: ServingError | None = None):
    """Generate these tokens, and be gone."""
    return lambda request: [*says(*token_ids)(request)[:-1], by or ReplicaUnavailable("gone")]


def refuses(error: ServingError):
    return lambda request: [error]


def short(max_tokens: int = 4, **fields) -> GenerationRequest:
    return GenerationRequest(request_id="short", prompt_ids=(5,), max_tokens=max_tokens, **fields)


def test_a_router_lost_between_the_last_token_and_the_end_is_not_missed():
    router = in_turn(lost(1, 2, 3, 4))
    events = asyncio.run(events_of(router.generate, short()))
    assert (ids(events), events[-1]) == ([1, 2, 3, 4], Ended(reason="length"))
    assert len(router.requests) == 1


def test_only_the_first_prompt_done_is_passed_on():
    router = in_turn(
        lambda request: [[], [PromptDone(num_cached=3)], [TokenChosen(token_id=1)], Draining("drains")], says(2, 3, 4)
    )
    events = asyncio.run(events_of(router.generate, short()))
    assert events[0] == PromptDone(num_cached=3)
    assert [type(event) for event in events[1:]] == [TokenChosen] * 4 + [Ended]


def test_tokens_that_come_with_a_routers_farewell_are_kept():
    def script(request) -> list[Step]:
        farewell = Ended(reason="error", error=ReplicaUnavailable("stops"))
        return [[PromptDone(), TokenChosen(token_id=1), TokenChosen(token_id=2), farewell]]

    events = asyncio.run(events_of(in_turn(script, says(3, 4)).generate, short()))
    assert ids(events) == [1, 2, 3, 4]


def test_a_stream_that_ends_without_an_end_is_replayed():
    router = in_turn(lambda request: says(1, 2)(request)[:-1], says(3, 4))
    assert ids(asyncio.run(events_of(router.generate, short()))) == [1, 2, 3, 4]


@pytest.mark.parametrize("error", [Overloaded("full", retry_after_ms=1000), NoReplica("no router runs")])
def test_what_refuses_a_sequence_is_waited_out_once_it_was_accepted(error):
    router = in_turn(lost(1), refuses(error), refuses(error), says(2, 3, 4))
    assert ids(asyncio.run(events_of(router.generate, short()))) == [1, 2, 3, 4]
    with pytest.raises(type(error)):
        asyncio.run(events_of(in_turn(refuses(error)).generate, short()))


def test_a_router_lost_before_it_accepted_is_no_replay():
    replays: list[None] = []
    router = in_turn(refuses(ReplicaUnavailable("gone")), refuses(Draining("drains")), says(1, 2, 3, 4))
    events = asyncio.run(events_of(router.generate, short(), lambda: replays.append(None)))
    assert (ids(events), replays) == ([1, 2, 3, 4], [])


@pytest.mark.parametrize("error", [NoReplica("nobody holds expert 3"), InternalError("a bug")])
def test_what_no_other_router_can_help_is_told(error):
    router = in_turn(lambda request: [*says(1)(request)[:-1], [Ended(reason="error", error=error)]])
    events = asyncio.run(events_of(router.generate, short()))
    assert (events[-1].error, len(router.requests)) == (error, 1)


def test_a_sequence_that_ends_router_after_router_is_given_up():
    router = in_turn(lost(1), lost())
    with pytest.raises(ReplicaUnavailable, match="gone"):
        asyncio.run(events_of(router.generate, short()))
    assert len(router.requests) == MOST_LOST + 1


def test_progress_earns_more_routers():
    router = in_turn(*(script for token in range(20) for script in (lost(), lost(token))))
    assert ids(asyncio.run(events_of(router.generate, short(20)))) == list(range(20))


def test_each_attempt_has_the_time_that_is_left():
    router = in_turn(lost(1), lost(2), says(3, 4))
    asyncio.run(events_of(router.generate, short(timeout_s=30)))
    first, *others = [each.timeout_s for each in router.requests]
    assert first == 30
    assert 30 > others[0] > others[1] > 20
    with pytest.raises(DeadlineExceeded, match="after 0 tokens"):
        asyncio.run(events_of(in_turn(refuses(ReplicaUnavailable("gone"))).generate, short(timeout_s=0.05)))


def test_the_deadline_of_a_request_ends_waiting_for_a_router(id_model):
    router = in_turn(lost(1), refuses(Overloaded("full")))
    service = InferenceService(id_model, router, FrontDoorLimits(request_timeout_s=0.3))

    async def ask() -> None:
        request = check_request(RequestFields(prompts=[(5,)]), id_model, "late")
        async with aclosing(service.generate(request)) as events:
            async for _ in events:
                pass

    with pytest.raises(DeadlineExceeded):
        asyncio.run(ask())
    assert not router.open


def test_every_replay_is_told_in_the_log(caplog):
    caplog.set_level(logging.WARNING)
    asyncio.run(events_of(in_turn(lost(1, 2), says(3, 4)).generate, short()))
    [line] = caplog.records
    assert line.message == "a sequence goes on at another router: gone"
    assert line.fields == {"request_id": "short", "tokens": 2}


def test_cancelling_whoever_waits_between_attempts_leaves_nothing_open():
    async def run() -> None:
        router = in_turn(lost(1), lambda request: [HOLD])
        task = asyncio.create_task(events_of(router.generate, short()))
        while len(router.requests) < 2 or not router.open:  # noqa: ASYNC110  the script does not tell
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not router.open

    asyncio.run(run())
