"""Length classes at a live front door, over both APIs: who goes where, what they are told, what is refused."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace

import grpc
import openai
import pytest

from cluster.limits import FrontDoorLimits
from cluster.pool import PoolAccess
from cluster.service import InferenceService
from cluster.validation import RequestFields, check_request
from protos.errors import Overloaded, from_rpc_error
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1.inference_pb2_grpc import InferenceServiceStub
from router.request import Ended, EngineEvent, GenerationRequest, PromptDone, PromptProgress, TokenChosen
from tests.cluster.conftest import CONTEXT_LENGTH, openai_client
from tests.cluster.live_front_door import LiveFrontDoor
from tests.cluster.scripted_router import HOLD, ScriptedRouter, says, then_holds

LONG_FROM = 64
WAIT_S = 30


def slowly(request: GenerationRequest) -> list:
    """Compute the prompt in three steps, then say H."""
    total = len(request.prompt_ids)
    parts = [[PromptProgress(num_done=total * part // 4, num_total=total)] for part in (1, 2, 3)]
    return [[], *parts, [PromptDone()], [TokenChosen(token_id=72)], [Ended(reason="length")]]


@pytest.fixture
def long_router() -> ScriptedRouter:
    return ScriptedRouter(slowly)


@pytest.fixture
def long_door(text_model, router, long_router) -> Iterator[LiveFrontDoor]:
    """A front door with routers for long requests, that reports progress whenever there is some."""
    model = replace(text_model, long_from=LONG_FROM)
    long = PoolAccess(long_router, FrontDoorLimits(max_sequences=2))
    service = InferenceService(model, router, FrontDoorLimits(health_timeout_s=20), long=long, progress_s=0.0)
    with LiveFrontDoor(service) as live:
        yield live


@pytest.fixture
def long_stub(long_door) -> Iterator[InferenceServiceStub]:
    with grpc.insecure_channel(long_door.grpc_address) as channel:
        yield InferenceServiceStub(channel)


def request(num_prompt: int, max_tokens: int) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=[5] * num_prompt), stopping=pb.Stopping(max_tokens=max_tokens, ignore_eos=True)
    )


def body(num_prompt: int, max_tokens: int, **fields: object) -> dict[str, object]:
    return {"prompt": [5] * num_prompt, "max_tokens": max_tokens, "ignore_eos": True} | fields


def stream_lines(door: LiveFrontDoor, sent: dict[str, object]) -> list[str]:
    connection = http.client.HTTPConnection(door.http_address, timeout=WAIT_S)
    connection.request("POST", "/v1/completions", json.dumps(sent), {"Content-Type": "application/json"})
    lines = connection.getresponse().read().decode().split("\n\n")
    connection.close()
    return lines


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "is_long"),
    [(LONG_FROM - 2, 1, False), (LONG_FROM - 1, 1, True), (1, LONG_FROM - 2, False), (1, LONG_FROM - 1, True)],
)
def test_prompt_and_output_together_decide_who_computes(
    router, long_router, long_door, long_stub, num_prompt, max_tokens, is_long
):
    list(long_stub.Generate(request(num_prompt, max_tokens), timeout=WAIT_S))
    status, _, _ = long_door.post("/v1/completions", body(num_prompt, max_tokens))
    assert status == 200
    assert (len(router.requests), len(long_router.requests)) == ((0, 2) if is_long else (2, 0))


@pytest.mark.parametrize(
    ("num_prompt", "most", "is_long"),
    [(1, LONG_FROM - 2, False), (47, LONG_FROM - 48, False), (48, CONTEXT_LENGTH - 48, True)],
)
def test_without_max_tokens_a_prompt_stays_short_while_a_quarter_is_left(
    router, long_router, long_stub, num_prompt, most, is_long
):
    asked = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5] * num_prompt))
    list(long_stub.Generate(asked, timeout=WAIT_S))
    (found,) = long_router.requests if is_long else router.requests
    assert found.max_tokens == most


def test_progress_comes_between_started_and_the_first_token(long_stub):
    events = list(long_stub.Generate(request(100, 1), timeout=WAIT_S))
    kinds = [each.WhichOneof("event") for each in events]
    reports = [each.progress for each in events if each.HasField("progress")]
    assert kinds == ["started", *["progress"] * len(reports), "delta", "delta", "finished"]
    assert [each.prompt_tokens_done for each in reports] == sorted(each.prompt_tokens_done for each in reports)
    assert {each.prompt_tokens_done for each in reports} <= {25, 50, 75, 100}
    assert {(each.prompt_tokens, each.queue_position) for each in reports} == {(100, 0)}


def test_progress_says_how_much_of_a_prompt_is_computed(long_router, long_stub):
    long_router.script = lambda asked: [[], [PromptProgress(num_done=50, num_total=100)], HOLD]
    call = long_stub.Generate(request(100, 1), timeout=WAIT_S)
    report = next(each.progress for each in call if each.HasField("progress"))
    call.cancel()
    assert report == pb.Progress(prompt_tokens_done=50, prompt_tokens=100)
    assert long_router.wait_until_open(0)


def test_over_http_progress_is_a_comment_and_the_rest_of_the_stream_is_the_same(long_door):
    lines = stream_lines(long_door, body(100, 1, stream=True))
    comments = [line.removeprefix(": progress ") for line in lines if line.startswith(":")]
    assert comments
    assert all(json.loads(each)["prompt_tokens"] == 100 for each in comments)
    assert all(line.startswith("data: ") for line in lines if line and not line.startswith(":"))
    assert "data: [DONE]" in lines


def test_clients_of_openai_pass_over_progress(long_door):
    with openai_client(long_door) as client:
        chunks = list(client.completions.create(model="tiny", **_for_client(body(100, 1)), stream=True))
        whole = client.completions.create(model="tiny", **_for_client(body(100, 1)))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text == "H"


def _for_client(sent: dict[str, object]) -> dict[str, object]:
    return {"prompt": sent["prompt"], "max_tokens": sent["max_tokens"], "extra_body": {"ignore_eos": True}}


def test_short_requests_hear_of_no_progress(long_door, long_stub):
    assert all(not each.HasField("progress") for each in long_stub.Generate(request(5, 3), timeout=WAIT_S))
    assert not [line for line in stream_lines(long_door, body(5, 3, stream=True)) if line.startswith(":")]


def test_whoever_finds_long_routers_full_is_told_its_place_and_then_served(long_router, long_door, long_stub):
    def full_at_first(asked: GenerationRequest) -> list:
        is_full = len(long_router.requests) <= 2
        return [Overloaded("expected room, found none")] if is_full else list(says(72)(asked))

    long_router.script = full_at_first
    long_door.service.long.queue._ask_again_s = 0.01
    events = list(long_stub.Generate(request(100, 1), timeout=WAIT_S))
    assert events[0].progress.queue_position == 1
    assert not events[0].progress.HasField("expected_start_ms"), "nothing was measured yet"
    assert [each.WhichOneof("event") for each in events if not each.HasField("progress")] == [
        "started",
        "delta",
        "delta",
        "finished",
    ]


def test_long_requests_have_limits_of_their_own(router, long_router, long_door, long_stub):
    long_router.script = lambda asked: [HOLD]
    calls = [long_stub.Generate(request(100, 1), timeout=WAIT_S) for _ in range(2)]
    assert long_router.wait_until_open(1)  # the other waits in line
    while long_door.service.long.admission.num_sequences < 2:
        pass
    with pytest.raises(grpc.RpcError) as refused:
        list(long_stub.Generate(request(100, 1), timeout=WAIT_S))
    assert from_rpc_error(refused.value, "herd").reason == "OVERLOADED"
    assert list(long_stub.Generate(request(5, 3), timeout=WAIT_S))[-1].HasField("finished"), "short ones are served"
    for call in calls:
        call.cancel()
    assert long_router.wait_until_open(0)


def test_both_pools_tell_their_load(router, long_router, long_door, long_stub):
    router.script = long_router.script = then_holds(72)
    calls = [long_stub.Generate(request(count, 9), timeout=WAIT_S) for count in (5, 100)]
    assert router.wait_until_open(1)
    assert long_router.wait_until_open(1)
    assert len(long_stub.GetLoad(pb.GetLoadRequest(), timeout=WAIT_S).routers) == 2
    assert long_door.service.num_sequences == 2
    for call in calls:
        call.cancel()
    assert long_router.wait_until_open(0)
    long_router.replicas = 0
    assert len(long_stub.GetLoad(pb.GetLoadRequest(), timeout=WAIT_S).routers) == 1


# The context's end.

AT_THE_LIMIT = {"by output": (100, CONTEXT_LENGTH - 100), "by prompt": (CONTEXT_LENGTH - 1, 1)}
WAYS_OUT = ("shorten", "whoever runs this server raise model.context_length")


@pytest.fixture
def asked_model(text_model):
    """A model that could be served with a longer context."""
    return replace(text_model, config=replace(text_model.config, max_positions=4 * CONTEXT_LENGTH))


@pytest.fixture
def limited_door(asked_model, router) -> Iterator[LiveFrontDoor]:
    with LiveFrontDoor(InferenceService(asked_model, router)) as live:
        yield live


@pytest.mark.parametrize("name", AT_THE_LIMIT)
def test_exactly_the_context_is_accepted_and_a_token_more_is_refused_before_any_work(router, limited_door, name):
    num_prompt, max_tokens = AT_THE_LIMIT[name]
    limit = str(CONTEXT_LENGTH)
    with grpc.insecure_channel(limited_door.grpc_address) as channel:
        stub = InferenceServiceStub(channel)
        list(stub.Generate(request(num_prompt, max_tokens), timeout=WAIT_S))
        assert limited_door.post("/v1/completions", body(num_prompt, max_tokens))[0] == 200
        assert len(router.requests) == 2
        for more in ((num_prompt + 1, max_tokens), (num_prompt, max_tokens + 1)):
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.Generate(request(*more), timeout=WAIT_S))
            error = from_rpc_error(caught.value, "herd")
            status, _, answer = limited_door.post("/v1/completions", body(*more))
            assert (error.reason, status) == ("CONTEXT_TOO_LONG", 400)
            assert answer["error"]["message"] == error.message
            assert error.metadata["context_length"] == limit
            assert f"of {limit}" in error.message
            assert all(each in error.message for each in WAYS_OUT), error.message
    assert len(router.requests) == 2, "what is refused reaches no router"


def test_where_the_model_itself_ends_no_setting_is_offered(asked_model, router):
    model = replace(asked_model, config=replace(asked_model.config, max_positions=CONTEXT_LENGTH))
    said = f"a model that was made for more than {CONTEXT_LENGTH}"
    with (
        LiveFrontDoor(InferenceService(model, router)) as live,
        openai_client(live) as client,
        pytest.raises(openai.BadRequestError, match=said),
    ):
        client.completions.create(model="tiny", prompt=[5] * CONTEXT_LENGTH, max_tokens=1)


@pytest.mark.parametrize("long_from", [2, 3])
def test_a_prompt_without_max_tokens_gets_a_token_however_short_long_is(text_model, long_from):
    model = replace(text_model, long_from=long_from)
    checked = check_request(RequestFields(prompts=[(5,) * (long_from - 1)]), model, "one")
    assert checked.max_tokens[0] >= 1


def test_whoever_waits_has_the_slot_of_a_choice_that_ended(text_model, router):
    """The line moves when a choice ends, not when its whole request does."""

    async def scene() -> int:
        ends: list[asyncio.Event] = []

        class OneSlot(ScriptedRouter):
            def generate(self, request: GenerationRequest) -> AsyncGenerator[list[EngineEvent], None]:
                return self._one(request)

            async def _one(self, request: GenerationRequest) -> AsyncGenerator[list[EngineEvent], None]:
                if ends and not ends[-1].is_set():
                    raise Overloaded("expected room, found none")
                ends.append(asyncio.Event())
                yield []
                await ends[-1].wait()
                yield [PromptDone(), TokenChosen(token_id=72), Ended(reason="length")]

        long = PoolAccess(OneSlot(says()), FrontDoorLimits())
        service = InferenceService(replace(text_model, long_from=LONG_FROM), router, FrontDoorLimits(), long=long)
        assert service.long is not None
        assert service.long.queue is not None
        service.long.queue._ask_again_s = 1000.0  # nobody asks again by itself
        asked = check_request(
            RequestFields(prompts=[(5,) * 80], max_tokens=1, num_choices=2), service.model, "two choices"
        )
        async with asyncio.timeout(WAIT_S), aclosing(service.generate(asked)) as events:

            async def follow() -> None:
                async for _ in events:
                    pass

            following = asyncio.create_task(follow())
            for number in (1, 2):
                while len(ends) < number:  # noqa: ASYNC110  nobody tells
                    await asyncio.sleep(0.001)
                ends[-1].set()
            await following
        return len(ends)

    assert asyncio.run(scene()) == 2
