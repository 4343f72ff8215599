"""Herd's gRPC API on real sockets."""

import asyncio

import pytest

from benchmarks.free_port import find_free_port
from cluster.bench.measurement import Status
from cluster.bench.session import run_bench
from cluster.bench.settings import OpenLoop
from cluster.service import InferenceService
from protos.errors import InternalError, InvalidRequest, Overloaded, ReplicaUnavailable
from tests.cluster.bench.measured import settings
from tests.cluster.live_front_door import LiveFrontDoor
from tests.cluster.scripted_router import ScriptedRouter, fails, says, then_holds


def bench(door, **changes):
    endpoint = {"grpc": door if isinstance(door, str) else door.grpc_address, **changes.pop("endpoint", {})}
    return asyncio.run(run_bench(settings(endpoint=endpoint, **changes), asyncio.Event()))


@pytest.fixture(scope="module")
def door_of_ids(id_model):
    """A front door for a model without a tokenizer, with a router of its own."""
    with LiveFrontDoor(InferenceService(id_model, ScriptedRouter(says(1, 2, 3)))) as live:
        yield live


def test_a_front_door_is_measured_token_by_token(door, router):
    result = bench(door)
    assert (result.facts.model, result.facts.context_length) == ("tiny", 128)
    for found in result.measurements:
        assert (found.status, found.num_prompt_tokens, found.num_tokens) == (Status.OK, 8, 3)
        assert list(found.message_tokens) == [1, 1, 1]
        assert (found.cached_tokens, found.finish_reason) == (0, "length")
        assert found.sent_s <= found.message_s[0] <= found.message_s[-1] <= found.end_s
    assert len({request.prompt_ids for request in router.requests}) == 4


def test_an_open_loop_sends_every_request_at_or_after_its_time(door):
    result = bench(door, arrival=OpenLoop(rate_per_s=200.0), requests=10)
    assert [each.index for each in result.measurements] == list(range(10))
    assert all(each.status is Status.OK for each in result.measurements)
    assert all(each.lateness_s >= 0 for each in result.measurements)


def test_a_chat_and_texts_are_measured(door):
    for changes in ({"endpoint": {"is_chat": True}}, {"prompts": {"texts": ("Hello",)}}):
        for found in bench(door, **changes).measurements:
            assert (found.status, found.num_tokens, found.prompt_tokens) == (Status.OK, 3, None)
            assert found.num_prompt_tokens > 0


def test_a_model_without_a_tokenizer_takes_ids_and_no_chats(door_of_ids):
    assert bench(door_of_ids, prompts={"high_id": 40}).measurements[0].num_tokens == 3
    with pytest.raises(InvalidRequest, match="--chat: expected a model with a tokenizer, found tiny"):
        bench(door_of_ids, endpoint={"is_chat": True})


def test_refusals_are_counted_by_their_code(door, router):
    router.script = fails(Overloaded("expected room, found none"))
    for found in bench(door).measurements:
        assert (found.error.kind, found.error.message) == ("gRPC RESOURCE_EXHAUSTED", "expected room, found none")


def test_an_error_in_the_stream_ends_the_request(door, router):
    router.script = fails(InternalError("it broke"), 72, 101)
    for found in bench(door).measurements:
        assert (found.error.kind, found.num_arrived_tokens) == ("gRPC INTERNAL", 2)


def test_a_request_that_takes_too_long_is_a_timeout_and_ends_at_the_server(door, router):
    router.script = then_holds(72)
    result = bench(door, requests=2, timeout_s=0.2)
    assert [each.error.kind for each in result.measurements] == ["timeout", "timeout"]
    assert router.wait_until_open(0)


def test_stopping_a_run_interrupts_its_requests_and_keeps_what_came(door, router):
    router.script = then_holds(72)

    async def run():
        stop = asyncio.Event()
        told = settings(endpoint={"grpc": door.grpc_address})
        running = asyncio.create_task(run_bench(told, stop))
        await asyncio.to_thread(router.wait_until_open, 2)
        stop.set()
        return await running

    result = asyncio.run(run())
    assert result.is_interrupted
    assert [each.status for each in result.measurements] == [Status.INTERRUPTED] * 2
    assert router.wait_until_open(0)


def test_a_server_that_dies_in_the_middle_is_counted_and_the_run_ends(text_model, router):
    router.script = then_holds(72)
    door = LiveFrontDoor(InferenceService(text_model, router))

    async def run():
        with door:
            told = settings(endpoint={"grpc": door.grpc_address}, requests=None, duration_s=600.0, give_up_s=1e-9)
            running = asyncio.create_task(run_bench(told, asyncio.Event()))
            await asyncio.to_thread(router.wait_until_open, 2)
        return await running

    result = asyncio.run(run())
    kinds = {each.error.kind for each in result.measurements}
    assert result.gave_up
    assert "unreachable" in kinds
    assert kinds <= {"unreachable", "disconnected", "gRPC CANCELLED"}


def test_a_server_that_is_not_there_is_an_error_at_once():
    with pytest.raises(ReplicaUnavailable, match="found nobody who answers: start one with `herd serve`"):
        bench(f"127.0.0.1:{find_free_port()}")


def test_a_failed_warm_up_ends_the_run_before_it_begins(door):
    with pytest.raises(InvalidRequest, match="to the warm-up, found gRPC INVALID_ARGUMENT: prompt: expected"):
        bench(door, warmup=1, prompts={"low_id": 5000, "high_id": 6000})


@pytest.mark.parametrize("address", ["nohost", "host:port", ":9000"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(InvalidRequest, match="--grpc: expected HOST:PORT"):
        bench(address)
