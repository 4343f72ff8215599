import asyncio
from contextlib import aclosing

import pytest

from cluster.limits import FrontDoorLimits
from cluster.service import InferenceService
from cluster.service_events import Delta, Finished, Started
from cluster.validation import RequestFields, check_request
from protos.errors import BadConfig, DeadlineExceeded, Draining, NoReplica, Overloaded
from router.request import PromptDone
from tests.cluster.scripted_router import HOLD, ScriptedRouter, fails, says, then_holds


def service_for(model, script, **limits) -> tuple[InferenceService, ScriptedRouter]:
    router = ScriptedRouter(script)
    return InferenceService(model, router, FrontDoorLimits(**limits)), router


def ask(service, *prompts, **fields):
    prompts = prompts or ((5, 6),)
    return service.generate(check_request(RequestFields(prompts=prompts, **fields), service.model, "request"))


async def everything(events) -> list:
    async with aclosing(events):
        return [event async for event in events]


def is_idle(service, router) -> bool:
    admission = service.admission
    return not router.open and admission.num_sequences == admission.num_queued_prompt_tokens == 0


def test_events_come_in_order_and_add_up(text_model):
    service, router = service_for(text_model, says(72, 101))
    first, *deltas, last = asyncio.run(everything(ask(service, (5, 6), (7,), num_choices=2)))
    assert first == Started(request_id="request", num_prompt_tokens=3)
    assert sorted((delta.choice, delta.text) for delta in deltas if delta.text) == sorted(
        [(choice, text) for choice in range(4) for text in "He"]
    )
    assert isinstance(last, Finished)
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 8)
    assert is_idle(service, router)


def test_closing_after_any_number_of_events_leaves_nothing_open(text_model):
    async def take(service, count) -> None:
        async with aclosing(ask(service, num_choices=3)) as events:
            for _ in range(count):
                await anext(events)

    for count in range(11):
        service, router = service_for(text_model, says(72, 101, 102))
        asyncio.run(take(service, count))
        assert is_idle(service, router)


def test_cancelling_whoever_waits_leaves_nothing_open(text_model):
    async def wait_and_cancel(service, router) -> None:
        task = asyncio.create_task(everything(ask(service, num_choices=3)))
        assert await asyncio.to_thread(router.wait_until_open, 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for script in (then_holds(), then_holds(72), lambda request: [HOLD]):
        service, router = service_for(text_model, script)
        asyncio.run(wait_and_cancel(service, router))
        assert is_idle(service, router)


@pytest.mark.parametrize("tokens", [(), (72, 101)], ids=["before a token", "after tokens"])
def test_one_choice_that_fails_ends_all(text_model, tokens):
    hold, fail = then_holds(72), fails(NoReplica("nobody holds expert 3"), *tokens)
    service, router = service_for(text_model, lambda each: (fail if each.request_id == "request-1" else hold)(each))
    with pytest.raises(NoReplica, match="expert 3"):
        asyncio.run(everything(ask(service, num_choices=3)))
    assert is_idle(service, router)


def test_a_draining_door_refuses_and_lets_what_runs_go_on(text_model):
    async def drain(service):
        async with aclosing(ask(service)) as events:
            await anext(events)
            service.drain()
            with pytest.raises(Draining):
                await everything(ask(service))
            with pytest.raises(NoReplica):
                await service.load()
            return [event async for event in events][-1]

    service, router = service_for(text_model, says(72, 101))
    assert asyncio.run(drain(service)).usage.completion_tokens == 2
    assert is_idle(service, router)


def test_started_waits_until_every_sequence_is_accepted(text_model):
    def script(request):
        return [HOLD] if request.request_id == "request-1" else then_holds(72)(request)

    async def first_event(service):
        async with aclosing(ask(service, num_choices=2)) as events:
            return await anext(events)

    service, router = service_for(text_model, script, request_timeout_s=0.1)
    with pytest.raises(DeadlineExceeded):
        asyncio.run(first_event(service))
    assert is_idle(service, router)


def test_started_waits_for_prompt_logprobs_when_asked_for(text_model):
    service, _ = service_for(text_model, says(72))
    first = asyncio.run(everything(ask(service, (5, 6), (7, 8, 9), num_choices=2, prompt_logprobs=1)))[0]
    assert [[token.token_id for token in prompt] for prompt in first.prompt_logprobs] == [[5, 6], [7, 8, 9]]


def test_a_stop_text_closes_its_own_sequence_at_once(text_model):
    stops, holds = then_holds(*b"a stop"), then_holds(72)
    service, router = service_for(text_model, lambda each: (stops if each.request_id == "request-0" else holds)(each))

    async def read_to_stop() -> str:
        text = ""
        async with aclosing(ask(service, num_choices=2, stop=["stop"])) as events:
            async for event in events:
                if isinstance(event, Delta) and event.choice == 0:
                    text += event.text
                    if event.finish_reason:
                        await asyncio.sleep(0)
                        assert router.open == {"request-1"}
                        return text
        raise AssertionError("no end")

    assert asyncio.run(read_to_stop()) == "a "
    assert is_idle(service, router)


def test_tokens_after_a_stop_text_are_not_counted(text_model):
    service, _ = service_for(text_model, lambda request: [[each for step in says(*b"abc")(request) for each in step]])
    *_, delta, finished = asyncio.run(everything(ask(service, stop=["b"])))
    assert (delta.text, delta.token_ids, delta.finish_reason) == ("a", (97, 98), "stop")
    assert finished.usage.completion_tokens == 2


def test_a_request_over_its_deadline_ends_and_frees_everything(text_model):
    service, router = service_for(text_model, then_holds(72), request_timeout_s=60)
    with pytest.raises(DeadlineExceeded, match=r"within 0\.05 s"):
        asyncio.run(everything(ask(service, timeout_s=0.05)))
    assert is_idle(service, router)
    assert router.requests[0].timeout_s == 0.05


def test_a_slow_reader_does_not_get_more_time(text_model):
    async def read_slowly(service) -> None:
        async with aclosing(ask(service)) as events:
            await anext(events)
            await asyncio.sleep(0.06)  # longer than the request may take
            async for _ in events:
                pass

    service, router = service_for(text_model, then_holds(72), request_timeout_s=0.05)
    with pytest.raises(DeadlineExceeded):
        asyncio.run(read_slowly(service))
    assert is_idle(service, router)


def test_prompt_tokens_stop_queueing_when_the_prompt_is_computed(text_model):
    async def watch(service) -> list[int]:
        queued = []
        async with aclosing(ask(service, (5, 6), num_choices=2)) as events:
            async for event in events:
                queued.append(service.admission.num_queued_prompt_tokens)
                if isinstance(event, Delta):
                    return queued
        raise AssertionError("no delta")

    service, _ = service_for(text_model, lambda request: [[], [], [PromptDone()], *then_holds(72)(request)[2:]])
    queued = asyncio.run(watch(service))
    assert (queued[0], queued[-1]) == (4, 0)


def test_a_full_front_door_refuses_before_it_asks_a_router(text_model):
    async def two(service) -> None:
        async with aclosing(ask(service, num_choices=3)) as events:
            await anext(events)
            await everything(ask(service))

    service, router = service_for(text_model, then_holds(), max_sequences=3)
    with pytest.raises(Overloaded, match="at most 3 sequences"):
        asyncio.run(two(service))
    assert len(router.requests) == 3
    assert is_idle(service, router)


@pytest.mark.parametrize("limits", [{"max_body_bytes": 0}, {"max_sequences": 0}, {"request_timeout_s": float("nan")}])
def test_limits_that_cannot_work_are_refused(text_model, limits):
    with pytest.raises(BadConfig, match=next(iter(limits))):
        service_for(text_model, says(72), **limits)
