"""The Dispatch stream over real sockets: answers, refusals, merging, limits, ends."""

from __future__ import annotations

import threading
import time

import grpc
import pytest
import torch

from experts.batcher import BatcherLimits
from protos import errors
from protos.checksum import dispatch_checksum, result_checksum
from protos.expert.v1 import expert_pb2
from tests.experts.replica_client import WAIT_S, StreamClient, dispatch_of, outputs_of, wait_until

HIDDEN_ND = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
COUNTS = {0: 1, 3: 3}


def error_of(response: expert_pb2.DispatchResponse) -> errors.ServingError:
    assert response.WhichOneof("message") == "error", response
    found = errors.from_detail(response.error.detail)
    assert response.error.code == found.grpc_code.value[0]
    return found


def ended_with(client: StreamClient) -> errors.ServingError:
    failure = client.end()
    assert isinstance(failure, grpc.RpcError)
    return errors.from_rpc_error(failure, "the replica")


@pytest.mark.parametrize("lane", ["address", "unix_address"])
def test_dispatch_is_answered_with_outputs_times_and_load(serve, connect, held, lane):
    client = connect(getattr(serve(), lane))
    response = client.ask(dispatch_of(HIDDEN_ND, COUNTS, dispatch_id=7))
    torch.testing.assert_close(outputs_of(response), held.run(1, HIDDEN_ND, (0, 3), (1, 3)), atol=1e-3, rtol=1e-4)
    assert response.result.dispatch_id == 7
    assert 0 < response.result.compute_us < WAIT_S * 1e6
    assert response.result.load == expert_pb2.Load(queued_tokens=0, total_tokens=4)


def test_welcome_tells_what_is_held(serve, held):
    server = serve()
    client = StreamClient(server.address, expert_pb2.Hello(model_fingerprint=held.fingerprint))
    replica = client.next().welcome.replica
    client.close()
    assert (list(replica.layers), list(replica.expert_ids), replica.hidden_size) == ([1, 3], [0, 1, 3], 32)
    assert replica.replica_id == server.replica.replica_id
    assert replica.weight_bytes == replica.loaded_bytes == 3 * 2 * (32 * 48 + 24 * 32) * 4


def test_answers_of_one_stream_may_overtake_each_other(serve, connect, held):
    held.gate.clear()
    client = connect(serve().address)
    client.send(dispatch_of(HIDDEN_ND.repeat(20, 1), {0: 80}, dispatch_id=1))
    held.begun.get(timeout=WAIT_S)
    client.send(dispatch_of(HIDDEN_ND, COUNTS, dispatch_id=2))
    assert error_of(client.ask(dispatch_of(HIDDEN_ND, {2: 4}, dispatch_id=3))).reason == "STALE_PLACEMENT"
    held.gate.set()
    assert {client.next().result.dispatch_id for _ in range(2)} == {1, 2}


def test_two_streams_are_merged_into_one_batch(serve, connect, held):
    held.gate.clear()
    server = serve()
    first, second, third = (connect(server.address) for _ in range(3))
    first.send(dispatch_of(HIDDEN_ND, {1: 4}, layer=3))
    assert held.begun.get(timeout=WAIT_S) == (3, (4,))
    second.send(dispatch_of(HIDDEN_ND, COUNTS))
    third.send(dispatch_of(HIDDEN_ND * 2, {1: 1, 3: 3}))
    wait_until(lambda: server.replica.batcher.num_unfinished == 3)
    held.gate.set()
    answers = [client.next() for client in (first, second, third)]
    assert held.begun.get(timeout=WAIT_S) == (1, (1, 1, 6))
    expected = [
        held.run(3, HIDDEN_ND, (1,), (4,)),
        held.run(1, HIDDEN_ND, (0, 3), (1, 3)),
        held.run(1, HIDDEN_ND * 2, (1, 3), (1, 3)),
    ]
    for answer, expected_ND in zip(answers, expected, strict=True):
        torch.testing.assert_close(outputs_of(answer), expected_ND, atol=1e-3, rtol=1e-4)
    assert answers[1].result.queue_us > 0
    assert answers[1].result.compute_us == answers[2].result.compute_us


def test_a_stream_that_stands_back_is_merged_with_no_other(serve, connect, held):
    held.gate.clear()
    server = serve()
    first, short = connect(server.address), connect(server.address)
    long = StreamClient(server.address, expert_pb2.Hello(model_fingerprint=held.fingerprint, stands_back=True))
    assert long.next().WhichOneof("message") == "welcome"
    first.send(dispatch_of(HIDDEN_ND, {1: 4}, layer=3))
    assert held.begun.get(timeout=WAIT_S) == (3, (4,))
    long.send(dispatch_of(HIDDEN_ND, COUNTS))
    wait_until(lambda: server.replica.batcher.num_unfinished == 2)
    short.send(dispatch_of(HIDDEN_ND, {0: 2, 3: 2}))
    wait_until(lambda: server.replica.batcher.num_unfinished == 3)
    held.gate.set()
    answer = long.next()
    long.close()
    assert [held.begun.get(timeout=WAIT_S) for _ in range(2)] == [(1, (2, 2)), (1, (1, 3))]
    expected_ND = held.run(1, HIDDEN_ND, (0, 3), (1, 3))
    torch.testing.assert_close(outputs_of(answer), expected_ND, atol=1e-3, rtol=1e-4)


WRONG = {
    "dtype": ({"hidden": {"dtype": 2}}, "BAD_TENSOR", "expected dtype"),
    "no hidden": ({"hidden": {"dtype": 0}}, "BAD_TENSOR", "found code 0"),
    "width": ({"hidden": {"shape": [2, 64]}}, "BAD_TENSOR", r"expected shape \[any, 32\]"),
    "rank": ({"hidden": {"shape": [128]}}, "BAD_TENSOR", "expected shape"),
    "negative extent": ({"hidden": {"shape": [-4, 32]}}, "BAD_TENSOR", "expected shape"),
    "too few bytes": ({"hidden": {"data": bytes(511)}}, "BAD_TENSOR", "expected 512 bytes"),
    "too many bytes": ({"hidden": {"data": bytes(513)}}, "BAD_TENSOR", "expected 512 bytes"),
    "huge shape": ({"hidden": {"shape": [2**50, 32]}}, "BAD_TENSOR", "found 512"),
    "dense layer": ({"layer": 0}, "BAD_DISPATCH", "layer"),
    "layer out of range": ({"layer": 2**31}, "BAD_DISPATCH", "layer"),
    "expert not held": ({"expert_ids": [0, 2]}, "STALE_PLACEMENT", "0, 1, 3"),
    "expert not in the model": ({"expert_ids": [0, 2**32 - 1]}, "BAD_DISPATCH", "below 4"),
    "descending experts": ({"expert_ids": [3, 0]}, "BAD_DISPATCH", "ascending"),
    "repeated expert": ({"expert_ids": [3, 3]}, "BAD_DISPATCH", "ascending"),
    "no experts": ({"expert_ids": [], "token_counts": []}, "BAD_DISPATCH", "at least one"),
    "counts missing": ({"token_counts": [4]}, "BAD_DISPATCH", "as many"),
    "zero count": ({"token_counts": [0, 4]}, "BAD_DISPATCH", "positive"),
    "counts too small": ({"token_counts": [1, 2]}, "BAD_DISPATCH", "sum of 4"),
    "counts too large": ({"token_counts": [2**32 - 1, 2**32 - 1]}, "BAD_DISPATCH", "sum of 4"),
}


@pytest.fixture(scope="module")
def shared_client(tiny_folder):
    """One stream for all wrong dispatches: none of them may harm it."""
    from experts.server import ExpertServer
    from tests.experts.conftest import GatedExperts

    held = GatedExperts.gated(tiny_folder)
    server = ExpertServer(held)
    server.start()
    client = StreamClient(server.address, expert_pb2.Hello(model_fingerprint=held.fingerprint))
    client.next()
    yield client
    client.close()
    server.stop()


@pytest.mark.parametrize("case", WRONG)
def test_wrong_dispatch_is_refused_and_its_stream_goes_on(shared_client, case):
    changes, reason, words = WRONG[case]
    wrong = dispatch_of(HIDDEN_ND, COUNTS)
    for field, value in changes.items():
        if isinstance(value, dict):
            for tensor_field, tensor_value in value.items():
                wrong.hidden.ClearField(tensor_field)
                wrong.hidden.MergeFrom(type(wrong.hidden)(**{tensor_field: tensor_value}))
        else:
            wrong.ClearField(field)
            wrong.MergeFrom(expert_pb2.Dispatch(**{field: value}))
    response = shared_client.ask(wrong)
    assert response.error.dispatch_id == wrong.dispatch_id
    refusal = error_of(response)
    assert refusal.reason == reason
    with pytest.raises(errors.ServingError, match=words):
        raise refusal
    assert outputs_of(shared_client.ask(dispatch_of(HIDDEN_ND, COUNTS))).shape == (4, 32)


def test_stream_without_hello_is_ended(serve):
    client = StreamClient(serve().address, None)
    client.send(dispatch_of(HIDDEN_ND, COUNTS))
    failure = client.end()
    client.close()
    assert failure.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert errors.from_rpc_error(failure, "replica").reason == "BAD_DISPATCH"


def test_second_hello_ends_the_stream_after_the_answers(serve, connect, held):
    held.gate.clear()
    client = connect(serve().address)
    client.send(dispatch_of(HIDDEN_ND.repeat(20, 1), {0: 80}, dispatch_id=1))
    held.begun.get(timeout=WAIT_S)
    client.send_raw(expert_pb2.DispatchRequest(hello=expert_pb2.Hello()))
    held.gate.set()
    assert client.next().result.dispatch_id == 1
    assert ended_with(client).reason == "BAD_DISPATCH"


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (expert_pb2.Hello(model_fingerprint="another"), "MODEL_MISMATCH"),
        (expert_pb2.Hello(), "MODEL_MISMATCH"),
        (expert_pb2.Hello(router_id="r" * 129), "BAD_DISPATCH"),
    ],
)
def test_unacceptable_hello_ends_the_stream(serve, hello, reason):
    client = StreamClient(serve().address, hello)
    assert ended_with(client).reason == reason
    client.close()


def test_half_closed_stream_ends_well_after_the_last_answer(serve, connect, held):
    held.gate.clear()
    client = connect(serve().address)
    for number in range(3):
        client.send(dispatch_of(HIDDEN_ND.repeat(20, 1), {0: 80}, dispatch_id=number))
    client.half_close()
    held.begun.get(timeout=WAIT_S)
    held.gate.set()
    assert sorted(response.result.dispatch_id for response in client.rest()) == [0, 1, 2]
    assert client.end() is None


def test_late_dispatch_is_not_computed(serve, connect, held):
    held.gate.clear()
    server = serve()
    blocker, client = connect(server.address), connect(server.address)
    blocker.send(dispatch_of(HIDDEN_ND, COUNTS, layer=3))
    held.begun.get(timeout=WAIT_S)
    client.send(dispatch_of(HIDDEN_ND, COUNTS, deadline_ms=1))
    wait_until(lambda: server.replica.batcher.num_unfinished == 2)
    sent_s = time.monotonic()
    wait_until(lambda: time.monotonic() > sent_s + 0.001)
    held.gate.set()
    assert error_of(client.next()).reason == "DEADLINE_EXCEEDED"
    assert outputs_of(client.ask(dispatch_of(HIDDEN_ND, COUNTS, deadline_ms=60_000))).shape == (4, 32)


def test_full_queue_refuses_one_dispatch_and_not_the_stream(serve, connect, held):
    held.gate.clear()
    client = connect(serve(batcher=BatcherLimits(max_waiting_dispatches=1, inline_macs=0)).address)
    client.send(dispatch_of(HIDDEN_ND, COUNTS, dispatch_id=1))
    held.begun.get(timeout=WAIT_S)
    client.send(dispatch_of(HIDDEN_ND, COUNTS, dispatch_id=2))
    refusal = error_of(client.ask(dispatch_of(HIDDEN_ND, COUNTS, dispatch_id=3)))
    assert isinstance(refusal, errors.Overloaded)
    assert refusal.retry_after_ms > 0
    held.gate.set()
    assert {client.next().result.dispatch_id for _ in range(2)} == {1, 2}


def test_reading_pauses_at_the_streams_limit(serve, connect, held):
    held.gate.clear()
    server = serve(max_in_flight=2)
    client = connect(server.address)
    for number in range(5):
        client.send(dispatch_of(HIDDEN_ND.repeat(20, 1), {0: 80}, dispatch_id=number))
    held.begun.get(timeout=WAIT_S)
    wait_until(lambda: server.replica.batcher.num_unfinished == 2)
    held.gate.set()
    assert [client.next().result.dispatch_id for _ in range(5)] == list(range(5))


def test_failing_kernel_fails_its_dispatch_and_the_next_is_answered(serve, connect, held, monkeypatch):
    client = connect(serve().address)
    good, held.run = held.run, lambda *args: (_ for _ in ()).throw(RuntimeError("no such instruction"))
    refusal = error_of(client.ask(dispatch_of(HIDDEN_ND, COUNTS)))
    assert refusal.reason == "INTERNAL"
    assert "no such instruction" in refusal.message
    held.run = good
    assert outputs_of(client.ask(dispatch_of(HIDDEN_ND, COUNTS))).shape == (4, 32)


def test_router_that_vanishes_leaves_nothing_behind(serve, connect, held):
    held.gate.clear()
    server = serve()
    before = set(threading.enumerate())
    client, witness = connect(server.address), connect(server.unix_address)
    for number in range(3):
        client.send(dispatch_of(HIDDEN_ND.repeat(20, 1), {0: 80}, dispatch_id=number))
    held.begun.get(timeout=WAIT_S)
    wait_until(lambda: server.replica.batcher.num_unfinished >= 2)
    client.close()
    wait_until(lambda: server.num_streams == 1)
    held.gate.set()
    wait_until(lambda: server.replica.batcher.num_unfinished == 0)
    assert outputs_of(witness.ask(dispatch_of(HIDDEN_ND, COUNTS))).shape == (4, 32)
    wait_until(lambda: not [t for t in set(threading.enumerate()) - before if t.name == "experts-answers"])


def test_router_that_vanishes_after_its_last_dispatch_is_not_waited_for(serve, connect, held):
    held.gate.clear()
    server = serve()
    client = connect(server.address)
    client.send(dispatch_of(HIDDEN_ND.repeat(20, 1), {0: 80}))
    held.begun.get(timeout=WAIT_S)
    client.half_close()
    # On the same connection: once these are answered, the half-close before them has arrived too.
    for _ in range(5):
        client.stub.Describe(expert_pb2.DescribeRequest(), timeout=WAIT_S)
    client.close()
    wait_until(lambda: server.num_streams == 0)
    assert server.replica.batcher.num_unfinished == 1


def test_stream_beyond_the_limit_is_refused(serve, connect):
    server = serve(max_streams=1)
    connect(server.address)
    client = StreamClient(server.address, expert_pb2.Hello())
    assert isinstance(ended_with(client), errors.Overloaded)
    client.close()


def test_message_over_the_limit_ends_its_stream_and_no_other(serve, connect):
    server = serve()
    greedy, client = connect(server.address), connect(server.address)
    huge = expert_pb2.Dispatch(layer=1, expert_ids=[0], token_counts=[1])
    huge.hidden.data = bytes(65 * 1024 * 1024)
    greedy.send(huge)
    assert greedy.end().code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert outputs_of(client.ask(dispatch_of(HIDDEN_ND, COUNTS))).shape == (4, 32)


def test_a_dispatch_that_comes_twice_is_answered_once(serve, connect):
    client = connect(serve().address)
    client.send(dispatch_of(HIDDEN_ND, COUNTS, dispatch_id=1))
    client.send(dispatch_of(HIDDEN_ND, COUNTS, dispatch_id=1))
    client.send(dispatch_of(HIDDEN_ND, COUNTS, dispatch_id=2))
    assert [client.next().result.dispatch_id for _ in range(2)] == [1, 2]


def test_a_dispatch_with_a_checksum_is_answered_with_one(serve, connect):
    client = connect(serve().address)
    dispatch = dispatch_of(HIDDEN_ND, COUNTS)
    dispatch.checksum = dispatch_checksum(dispatch)
    result = client.ask(dispatch).result
    assert result.checksum == result_checksum(result)
    assert not client.ask(dispatch_of(HIDDEN_ND, COUNTS)).result.HasField("checksum")


def _flip_a_token_bit(dispatch):
    data = bytearray(dispatch.hidden.data)
    data[5] ^= 1
    dispatch.hidden.data = bytes(data)


DAMAGE = {
    "a bit of a token": _flip_a_token_bit,
    "the layer": lambda dispatch: setattr(dispatch, "layer", dispatch.layer + 2),
    "an expert": lambda dispatch: dispatch.expert_ids.__setitem__(0, dispatch.expert_ids[0] + 1),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_dispatch_that_was_damaged_on_its_way_is_refused(serve, connect, damage):
    client = connect(serve().address)
    dispatch = dispatch_of(HIDDEN_ND, COUNTS)
    dispatch.checksum = dispatch_checksum(dispatch)
    damage(dispatch)
    assert error_of(client.ask(dispatch)).reason == "BAD_DISPATCH"
