from dataclasses import replace

import grpc
import pytest

from cluster.limits import FrontDoorLimits
from cluster.service import InferenceService
from models.chat import render_chat
from models.chat_message import ChatMessage
from protos import errors
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1.inference_pb2_grpc import InferenceServiceStub
from tests.cluster.busy_cluster import busy_placement, router_loads, with_experts
from tests.cluster.conftest import openai_client
from tests.cluster.live_front_door import LiveFrontDoor, refusal
from tests.cluster.scripted_router import babbles, fails, says, then_holds

WAIT_S = 30
IDS = pb.TokenIds(ids=[5, 6])
HELLO = pb.Chat(messages=[pb.ChatMessage(role="user", content="Hello")])

# (fields besides good token ids, word of the message)
WRONG = {
    "empty text": ({"prompt": ""}, "at least one character"),
    "no ids": ({"token_ids": pb.TokenIds()}, "at least one token"),
    "no messages": ({"chat": pb.Chat()}, "at least one message"),
    "id out of range": ({"token_ids": pb.TokenIds(ids=[5, 2**32 - 1])}, "found 4294967295 at position 1"),
    "unknown role": ({"chat": pb.Chat(messages=[pb.ChatMessage(role="wizard")])}, "found 'wizard'"),
    "max_tokens 0": ({"stopping": pb.Stopping(max_tokens=0)}, "max_tokens: expected at least 1"),
    "NaN temperature": ({"sampling": pb.Sampling(temperature=float("nan"))}, "temperature: expected"),
    "infinite temperature": ({"sampling": pb.Sampling(temperature=float("inf"))}, "temperature: expected"),
    "NaN top_p": ({"sampling": pb.Sampling(top_p=float("nan"))}, "top_p: expected"),
    "NaN penalty": ({"sampling": pb.Sampling(presence_penalty=float("nan"))}, "presence_penalty: expected"),
    "1000 stop texts": ({"stopping": pb.Stopping(stop=["a"] * 1000)}, "at most 16 texts, found 1000"),
    "65 stop ids": ({"stopping": pb.Stopping(stop_token_ids=[5] * 65)}, "at most 64 ids"),
    "stop id out of range": ({"stopping": pb.Stopping(stop_token_ids=[311])}, "[0, 311)"),
    "17 choices": ({"num_choices": 17}, "1 to 16"),
    "21 logprobs": ({"logprobs": 21}, "0 to 20"),
    "21 prompt logprobs": ({"prompt_logprobs": 21}, "0 to 20"),
}


@pytest.fixture
def stub(door):
    with grpc.insecure_channel(door.grpc_address) as channel:
        yield InferenceServiceStub(channel)


@pytest.fixture(scope="module")
def engine_stub(text_engine_door):
    with grpc.insecure_channel(text_engine_door.grpc_address) as channel:
        yield InferenceServiceStub(channel)


def request(**fields) -> pb.GenerateRequest:
    if not {"prompt", "chat", "token_ids"} & fields.keys():
        fields["token_ids"] = IDS
    return pb.GenerateRequest(**fields)


def generate(stub, **fields) -> list[pb.GenerateResponse]:
    return list(stub.Generate(request(**fields), timeout=WAIT_S))


def deltas(responses) -> list[pb.Delta]:
    return [response.delta for response in responses if response.HasField("delta")]


def test_a_stream_is_started_deltas_finished(stub):
    first, *middle, last = generate(stub, num_choices=2)
    assert (first.started.model, first.started.prompt_tokens) == ("tiny", 2)
    assert first.started.request_id.startswith("gen-")
    for choice in (0, 1):
        mine = [delta for delta in deltas(middle) if delta.choice == choice]
        assert "".join(delta.text for delta in mine) == "Hello"
        reasons = [delta.finish_reason for delta in mine if delta.finish_reason]
        assert reasons == [pb.FINISH_REASON_LENGTH]
    assert (last.finished.usage.prompt_tokens, last.finished.usage.completion_tokens) == (2, 10)


def test_started_comes_before_any_token_is_ready(stub, router):
    router.script = then_holds()
    responses = stub.Generate(request(), timeout=WAIT_S)
    assert next(responses).HasField("started")
    responses.cancel()
    assert router.wait_until_open(0)


def test_text_and_chat_become_the_ids_that_tokenize_returns(stub, router, small_tokenizer):
    for fields in ({"prompt": "the World"}, {"chat": HELLO}):
        generate(stub, **fields)
        ids = stub.Tokenize(pb.TokenizeRequest(**fields), timeout=WAIT_S).ids
        assert tuple(ids) == router.requests[-1].prompt_ids
    assert list(ids) == render_chat([ChatMessage(role="user", content="Hello")], small_tokenizer)


def test_a_stop_text_is_not_returned(stub):
    answer = deltas(generate(stub, stopping=pb.Stopping(stop=["lo"], max_tokens=10)))
    assert "".join(delta.text for delta in answer) == "Hel"
    assert answer[-1].finish_reason == pb.FINISH_REASON_STOP


def test_max_tokens_left_out_is_what_the_context_leaves(stub, router):
    generate(stub)
    assert router.requests[0].max_tokens == 126


def test_logprobs_carry_ids_texts_and_alternatives(stub):
    first, *middle, _ = generate(stub, logprobs=1, prompt_logprobs=2, stopping=pb.Stopping(max_tokens=1))
    [scored] = deltas(middle)[0].logprobs
    assert (scored.token_id, scored.text, scored.logprob, scored.top[0].text) == (72, "H", -0.072, "H")
    assert [token.token_id for token in first.started.prompt_logprobs] == [5, 6]
    assert len(first.started.prompt_logprobs[1].top) == 2


def test_zero_is_a_value_and_absent_is_the_default(stub, router):
    generate(stub, sampling=pb.Sampling(temperature=0, seed=0), logprobs=0)
    generate(stub)
    given, absent = router.requests
    assert (given.sampling.temperature, given.sampling.seed, given.logprobs) == (0, 0, 0)
    assert (absent.sampling.temperature, absent.logprobs) == (1, None)
    assert absent.sampling.seed != 0


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_an_invalid_argument_with_what_to_do(engine_stub, text_engine_door, case):
    fields, words = WRONG[case]
    error = refusal(lambda: generate(engine_stub, **fields))
    assert isinstance(error, errors.InvalidRequest)
    assert words in error.message
    assert text_engine_door.service.admission.num_sequences == 0


def test_no_input_at_all_is_an_invalid_argument(stub):
    error = refusal(lambda: list(stub.Generate(pb.GenerateRequest(), timeout=WAIT_S)))
    assert error.message.startswith("input: expected a prompt")


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(engine_stub):
    error = refusal(lambda: generate(engine_stub, token_ids=pb.TokenIds(ids=[5] * 128)))
    assert isinstance(error, errors.ContextTooLong)
    assert (error.metadata["context_length"], error.metadata["found"]) == ("128", "128")


def test_another_model_is_not_found(stub):
    assert isinstance(refusal(lambda: generate(stub, model="other")), errors.NotFound)
    tokenize = pb.TokenizeRequest(model="other", prompt="a")
    assert isinstance(refusal(lambda: stub.Tokenize(tokenize, timeout=WAIT_S)), errors.NotFound)


def test_text_for_a_model_without_a_tokenizer_is_told_to_send_ids(id_engine_door):
    with grpc.insecure_channel(id_engine_door.grpc_address) as channel:
        stub = InferenceServiceStub(channel)
        for fields in ({"prompt": "hi"}, {"chat": HELLO}):
            assert "list of token ids" in refusal(lambda fields=fields: generate(stub, **fields)).message
        answer = deltas(generate(stub, stopping=pb.Stopping(max_tokens=3, ignore_eos=True), logprobs=1))
        assert not stub.ListModels(pb.ListModelsRequest(), timeout=WAIT_S).models[0].has_tokenizer
    assert [token.text for delta in answer for token in delta.logprobs] == ["", "", ""]


def test_a_full_router_says_when_to_retry(stub, router):
    router.script = fails(errors.Overloaded("full", retry_after_ms=2500))
    error = refusal(lambda: generate(stub))
    assert isinstance(error, errors.Overloaded)
    assert error.retry_after_ms == 2500


def test_an_error_after_tokens_ends_the_stream_with_its_status(stub, router):
    router.script = fails(errors.NoReplica("nobody holds expert 3"), 72)
    error = refusal(lambda: generate(stub, num_choices=3))
    assert isinstance(error, errors.NoReplica)
    assert router.wait_until_open(0)


def test_a_bug_is_internal_and_tells_no_secrets(stub, router):
    router.script = fails(ValueError("password 123"))
    error = refusal(lambda: generate(stub))
    assert isinstance(error, errors.InternalError)
    assert "123" not in error.message


def test_cancelling_the_call_closes_its_sequences(stub, router):
    router.script = then_holds(72)
    responses = stub.Generate(request(num_choices=3), timeout=WAIT_S)
    assert next(responses).HasField("started")
    assert router.wait_until_open(3)
    responses.cancel()
    assert router.wait_until_open(0)


def test_cancelling_while_messages_are_written_closes_the_sequences(stub, router):
    router.script = babbles
    for _ in range(10):
        responses = stub.Generate(request(), timeout=WAIT_S)
        for _ in range(20):
            next(responses)
        responses.cancel()
        assert router.wait_until_open(0)


def test_the_deadline_of_the_call_is_the_sequences_deadline(stub, router):
    router.script = then_holds(72)
    error = refusal(lambda: list(stub.Generate(request(), timeout=0.3)))
    assert isinstance(error, errors.DeadlineExceeded)
    assert router.wait_until_open(0)
    assert 0 < router.requests[0].timeout_s < 0.31  # gRPC rounds up what it sends, and both clocks tick


def test_the_front_doors_own_deadline_is_told_apart(text_model, router):
    router.script = then_holds(72)
    service = InferenceService(text_model, router, FrontDoorLimits(request_timeout_s=0.2))
    with LiveFrontDoor(service) as door, grpc.insecure_channel(door.grpc_address) as channel:
        error = refusal(lambda: generate(InferenceServiceStub(channel)))
    assert "within 0.2 s" in error.message


def test_what_runs_is_told(stub, text_model):
    info = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=WAIT_S)
    assert (info.model.name, info.model.context_length, info.model.has_tokenizer) == ("tiny", 128, True)
    assert (info.num_layers, info.num_moe_layers, info.num_experts, info.experts_per_token) == (4, 4, 4, 1)
    assert (info.dtype, info.placement_version) == ("float32", 3)
    assert list(info.expert_replicas[0].expert_ids) == [0, 1]
    assert info.version


def test_server_info_tells_expert_replicas_and_events(door, stub, router):
    router.placement = busy_placement(16, 4)
    door.service.model = with_experts(door.service.model, 16)
    info = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=WAIT_S)
    replica, expected = info.expert_replicas[3], router.placement.expert_replicas[3]
    assert (replica.host, list(replica.home_ids)) == ("node-1", [4, 5, 6, 7])
    assert dict(replica.tokens_per_s) == expected.tokens_per_s
    assert (replica.queue_us, replica.compute_us, replica.spare_bytes) == (620, 4200, 1_000_000_000)
    assert replica.registered_at_ms == round(expected.registered_at_s * 1000)
    event, happened = info.events[0], router.placement.events[0]
    assert (event.subject, event.text) == (happened.subject, happened.text)
    assert event.at_ms == round(happened.at_s * 1000)


def test_server_info_tells_replicas_by_state_and_load_by_layer(door, stub, router):
    router.placement = replace(busy_placement(16, 4), roster_problem="the controller is away")
    door.service.model = with_experts(door.service.model, 16)
    info = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=WAIT_S)
    failed, silent, loading, waiting, asked_for, draining, *ready = info.replicas
    assert (failed.state, failed.deployment) == (pb.REPLICA_STATE_FAILED, "Experts-7")
    assert failed.reason == router.placement.roster[0].reason
    assert silent.state == pb.REPLICA_STATE_SILENT
    assert (loading.done_bytes, loading.total_bytes, loading.pid) == (1_500_000_000, 6_000_000_000, 4713)
    assert (waiting.state, waiting.waits_for) == (pb.REPLICA_STATE_STARTING, "experts [3]")
    assert not waiting.HasField("since_ms")
    assert asked_for.since_ms == round(router.placement.roster[4].since_s * 1000)
    assert draining.state == pb.REPLICA_STATE_DRAINING
    assert {each.state for each in ready} == {pb.REPLICA_STATE_READY}
    assert info.replicas_problem == "the controller is away"
    assert [each.layer for each in info.layer_loads] == [1, 3, 5, 7]
    assert (len(info.layer_loads[3].tokens_per_s), info.layer_loads[3].tokens_per_s[0]) == (16, 320)


def test_load_tells_what_became_of_dispatches(stub, router):
    router.loads = router_loads(ejected=("b", "a"))
    [load, _] = stub.GetLoad(pb.GetLoadRequest(), timeout=WAIT_S).routers
    sent = load.dispatches
    assert (load.pid, sent.shares, sent.hedges, sent.resends, sent.probes) == (20_000, 1_204_331, 412, 7, 12)
    assert (sent.ejections, list(sent.ejected)) == (5, ["a", "b"])


def test_a_router_with_its_experts_inside_tells_no_dispatches(stub):
    [load] = stub.GetLoad(pb.GetLoadRequest(), timeout=WAIT_S).routers
    assert not load.HasField("dispatches")


def test_server_info_tells_what_the_kv_cache_takes(stub):
    cache = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=WAIT_S).kv_cache
    bytes_per_layer = 2 * 2 * 8 * 4  # keys and values, two heads of eight floats
    assert (cache.dtype, cache.page_tokens, cache.total_bytes) == ("float32", 4, 1_000_000)
    assert cache.global_bytes_per_token == 1 * bytes_per_layer
    assert cache.most_local_bytes_per_sequence == 8 * 3 * bytes_per_layer


def test_load_is_told_and_none_is_an_error(stub, router):
    [load] = stub.GetLoad(pb.GetLoadRequest(), timeout=WAIT_S).routers
    assert (load.replica_id, load.slots, load.kv_used_bytes, load.generated_tokens) == ("router-0", 4, 25, 7)
    router.replicas = 0
    assert isinstance(refusal(lambda: stub.GetLoad(pb.GetLoadRequest(), timeout=WAIT_S)), errors.NoReplica)


def test_a_seeded_answer_of_a_real_engine_is_the_same_twice_and_over_both_apis(text_engine_door, engine_stub):
    def ask() -> dict[int, list[int]]:
        ids: dict[int, list[int]] = {0: [], 1: []}
        stopping = pb.Stopping(max_tokens=12)
        for delta in deltas(generate(engine_stub, num_choices=2, sampling=pb.Sampling(seed=3), stopping=stopping)):
            ids[delta.choice] += delta.token_ids
        return ids

    with openai_client(text_engine_door) as client:
        extra = {"return_token_ids": True}
        answer = client.completions.create(model="tiny", prompt=[5, 6], n=2, seed=3, max_tokens=12, extra_body=extra)
    assert ask() == ask() == {choice.index: choice.token_ids for choice in answer.choices}


def test_calls_are_counted_by_status(text_model, router):
    with (
        LiveFrontDoor(InferenceService(text_model, router)) as door,
        grpc.insecure_channel(door.grpc_address) as channel,
    ):
        stub = InferenceServiceStub(channel)
        generate(stub)
        refusal(lambda: generate(stub, num_choices=99))
        router.script = says(72)
        generate(stub)
    counted = door.service.metrics.registry.get_sample_value
    assert counted("herd_requests_total", {"api": "grpc", "code": "OK"}) == 2
    assert counted("herd_requests_total", {"api": "grpc", "code": "INVALID_ARGUMENT"}) == 1
