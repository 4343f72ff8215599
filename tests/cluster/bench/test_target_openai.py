"""Servers of the OpenAI API, good ones and bad ones, on real sockets."""

import asyncio

import pytest

from benchmarks.free_port import find_free_port
from cluster.bench.measurement import Status
from cluster.bench.session import run_bench
from cluster.bench.target_openai import read_base_url
from protos.errors import InternalError, InvalidRequest, Overloaded, ReplicaUnavailable
from tests.cluster.bench.bad_server import DONE, WHOLE, BadServer, chunk, event, usage
from tests.cluster.bench.measured import settings
from tests.cluster.scripted_router import fails


def bench(url, **changes):
    endpoint = {"url": url, **changes.pop("endpoint", {})}
    told = settings(endpoint=endpoint, **changes)
    told.validate()
    return asyncio.run(run_bench(told, asyncio.Event()))


def one(server: BadServer, **changes):
    """What came of a single request."""
    [found] = bench(server.url, requests=1, **changes).measurements
    return found


def test_a_front_door_is_measured_token_by_token(door, router):
    result = bench(door.url)
    assert result.facts.model == "tiny"
    assert len(result.measurements) == 4
    for found in result.measurements:
        assert (found.status, found.num_prompt_tokens, found.num_tokens) == (Status.OK, 8, 3)
        assert list(found.message_tokens) == [1, 1, 1]
        assert found.knows_tokens_per_message
        assert (found.cached_tokens, found.finish_reason) == (0, "length")
        assert found.sent_s <= found.message_s[0] <= found.message_s[-1] <= found.end_s
    assert sorted(len(request.prompt_ids) for request in router.requests) == [8] * 4
    assert {(request.sampling.temperature, request.max_tokens) for request in router.requests} == {(0.0, 3)}
    assert len({request.prompt_ids for request in router.requests}) == 4


def test_a_chat_is_measured(door):
    found = bench(door.url, endpoint={"is_chat": True}).measurements
    assert {each.status for each in found} == {Status.OK}
    assert {each.num_tokens for each in found} == {3}
    assert all(each.num_prompt_tokens > 8 for each in found)


def test_texts_are_sent_as_texts(door, router):
    [found, *_] = bench(door.url, prompts={"texts": ("Hello",)}).measurements
    assert found.status is Status.OK
    assert found.prompt_tokens is None
    assert found.num_prompt_tokens == len(router.requests[0].prompt_ids)


def test_refusals_are_counted_by_their_status(door, router):
    router.script = fails(Overloaded("expected room, found none: come back later"))
    for found in bench(door.url).measurements:
        assert (found.status, found.error.kind) == (Status.FAILED, "HTTP 429")
        assert found.error.message == "expected room, found none: come back later"


def test_an_error_in_the_stream_ends_the_request(door, router):
    router.script = fails(InternalError("it broke"), 72, 101)
    for found in bench(door.url).measurements:
        assert (found.error.kind, found.error.message) == ("error in stream: internal", "it broke")
        assert found.num_arrived_tokens == 2


def test_a_server_that_does_not_tell_tokens_is_measured_by_its_usage():
    with BadServer(chunk(text="a") + chunk(text="bc", finish_reason="length") + usage(9, 5) + DONE) as server:
        found = one(server)
    assert (found.status, found.num_tokens, found.num_prompt_tokens, found.cached_tokens) == (Status.OK, 5, 9, None)
    assert not found.knows_tokens_per_message


def test_a_stream_without_done_is_whole_if_its_choice_was():
    with BadServer(WHOLE.removesuffix(DONE)) as server:
        assert one(server).status is Status.OK


def test_tokens_of_a_thinking_model_count_from_the_first_thought():
    deltas = ({"role": "assistant", "content": ""}, {"reasoning_content": "hm"}, {"content": "a"})
    stream = b"".join(event({"choices": [{"delta": delta, "finish_reason": None}]}) for delta in deltas)
    with BadServer(stream + DONE) as server:
        found = one(server, endpoint={"is_chat": True})
    assert (found.status, len(found.message_s)) == (Status.OK, 2)


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        ({"body": chunk(text="a")}, "truncated", "without a finish_reason and without"),
        ({"body": WHOLE[:60], "missing": 500}, "disconnected", ""),
        ({"body": b""}, "truncated", ""),
        ({"body": DONE}, "empty", "without a token"),
        ({"body": b"data: {oops\n\n"}, "malformed", "found '{oops'"),
        ({"body": b"data: [1]\n\n"}, "malformed", "found '[1]'"),
        ({"body": b'data: {"choices": [1]}\n\n'}, "malformed", "found '"),
        ({"body": WHOLE, "content_type": "text/html"}, "malformed", "found text/html"),
        ({"body": event({"error": {"message": "no", "code": 503}})}, "error in stream: 503", "no"),
        ({"body": event({"error": "no"})}, "error in stream", "no"),
        ({"body": b"<h1>Bad   gateway</h1>", "status": 502}, "HTTP 502", "<h1>Bad gateway</h1>"),
        ({"body": b'{"detail": "not here"}', "status": 404}, "HTTP 404", "not here"),
    ],
)
def test_what_a_bad_server_does_is_named(answer, kind, message):
    with BadServer(**answer) as server:
        found = one(server)
    assert (found.status, found.error.kind) == (Status.FAILED, kind)
    assert message in found.error.message


def test_extensions_are_sent_unless_left_out_and_the_users_fields_win():
    with BadServer() as server:
        one(server, endpoint={"model": "mine", "api_key": "secret", "extra_body": {"temperature": 0.5, "x": [1]}})
        one(server, endpoint={"has_extensions": False})
        one(server, endpoint={"ignores_eos": False, "is_chat": True})
    rich, plain, chat = server.bodies
    assert (rich["model"], rich["temperature"], rich["x"]) == ("mine", 0.5, [1])
    assert (rich["ignore_eos"], rich["return_token_ids"]) == (True, True)
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert set(plain) == {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options"}
    assert plain["model"] == "bad"
    assert "Authorization" not in server.headers[1]
    assert chat["messages"][0]["role"] == "user"
    assert "ignore_eos" not in chat


def test_a_server_that_dies_in_the_middle_is_counted_and_the_run_ends():
    with BadServer(last=2) as server:
        result = bench(server.url, requests=4, give_up_s=30.0)
        kinds = [each.error.kind if each.error else "ok" for each in result.measurements]
    assert kinds.count("ok") >= 2
    assert set(kinds) <= {"ok", "unreachable", "disconnected"}
    assert len(kinds) == 4
    assert not result.gave_up


def test_a_run_gives_up_on_a_server_that_is_gone():
    with BadServer(last=1) as server:
        told = settings(endpoint={"url": server.url}, requests=None, duration_s=600.0, give_up_s=1e-9)
        result = asyncio.run(run_bench(told, asyncio.Event()))
    assert result.gave_up
    assert result.measurements[0].status is Status.OK
    assert result.measurements[-1].error.kind == "unreachable"


def test_a_server_that_is_not_there_is_an_error_at_once():
    with pytest.raises(ReplicaUnavailable, match=r"expected an OpenAI API at http://127.0.0.1:\d+/v1, found nobody"):
        bench(f"http://127.0.0.1:{find_free_port()}/v1")


def test_a_failed_warm_up_ends_the_run_before_it_begins():
    answer = b'{"error": {"message": "no such model."}}'
    message = "answer to the warm-up, found HTTP 404: no such model; change"
    with BadServer(answer, status=404) as server, pytest.raises(InvalidRequest, match=message):
        bench(server.url, warmup=1)
    assert len(server.bodies) == 1


def test_a_warm_up_does_not_count():
    with BadServer() as server:
        assert len(bench(server.url, warmup=2).measurements) == 4
    assert len({tuple(prompt) for prompt in server.prompts()}) == 6


def test_a_server_that_lists_no_models_needs_to_be_told_one():
    with BadServer(models={"detail": "?"}) as server:
        with pytest.raises(InternalError, match=r"expected a list of models from .*/v1/models, found HTTP 200"):
            bench(server.url)
        assert one(server, endpoint={"model": "mine"}).status is Status.OK


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("http://a:1", "http://a:1/v1"),
        ("http://a:1/", "http://a:1/v1"),
        ("https://a/v1/", "https://a/v1"),
        ("http://a:1/x/v1/chat/completions", "http://a:1/x/v1"),
        ("http://a:1/v1/completions", "http://a:1/v1"),
    ],
)
def test_a_url_may_be_the_servers_the_apis_or_the_endpoints(text, base):
    assert read_base_url(text) == base


@pytest.mark.parametrize("text", ["", "localhost:8000", "ftp://a", "http://", "http://a/v1?x=1"])
def test_what_is_no_url_is_refused(text):
    with pytest.raises(InvalidRequest, match="--url: expected http://HOST:PORT/v1"):
        read_base_url(text)
