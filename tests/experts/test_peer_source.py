"""Weights copied from a live replica: the same to the bit, or read from files."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
import torch

from experts.peer_source import PeerSource
from experts.server import ExpertServer
from experts.weight_wire import CHUNK_BYTES
from experts.weights import ExpertWeights
from models.checkpoint import open_checkpoint
from protos import errors
from protos.channel import channel_options
from protos.weights.v1 import weights_pb2, weights_pb2_grpc
from tests.experts.replica_client import WAIT_S, StreamClient, dispatch_of, outputs_of

HIDDEN_ND = torch.randn(80, 32, generator=torch.Generator().manual_seed(1))
WIDE_ND = torch.randn(3, 1024, generator=torch.Generator().manual_seed(2))
Fetched = Iterator[weights_pb2.FetchResponse]


@pytest.fixture
def copy(tiny_folder) -> Iterator[Callable[..., tuple[ExpertWeights, ExpertWeights, PeerSource]]]:
    """Serve experts as they are held one way, and return them, experts copied from there, and the copier."""
    servers: list[ExpertServer] = []

    def start(dtype, quantize, wanted=(1, 3), held_as=None, folder=tiny_folder):
        held = ExpertWeights.load(open_checkpoint(folder), [0, 1, 3], *(held_as or (dtype,)), quantize=quantize)
        servers.append(ExpertServer(held))
        servers[-1].start()
        source = PeerSource(servers[-1].address, open_checkpoint(folder), dtype, quantize)
        return held, ExpertWeights.load(source, wanted, dtype, quantize=quantize), source

    yield start
    for server in servers:
        server.stop()


def serve_altered(real: str, alter: Callable[[Fetched], Fetched]) -> tuple[grpc.Server, str]:
    """Pass fetches on to a replica, and what it sends through a function."""
    channel = grpc.insecure_channel(real, options=channel_options())

    class Altering(weights_pb2_grpc.WeightsServiceServicer):
        def Fetch(self, request, context):
            yield from alter(weights_pb2_grpc.WeightsServiceStub(channel).Fetch(request, timeout=WAIT_S))

    server = grpc.server(futures.ThreadPoolExecutor(2))
    weights_pb2_grpc.add_WeightsServiceServicer_to_server(Altering(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_copied_experts_compute_the_same_to_the_bit(tmp_path, copy, dtype, quantize):
    # Extents that the CPU's own kernels take.
    folder = _write_even(tmp_path)
    held, copied, source = copy(dtype, quantize, folder=folder)
    if quantize == "int8" and dtype == torch.float32:
        assert source.fetched_bytes == 0  # in a form of oneDNN's that does not give weights back
    else:
        assert source.fetched_bytes >= 2 * 2 * 3 * 64 * 64 * (1 if quantize else dtype.itemsize)
        assert open_checkpoint(folder).bytes_read == 0 == source._files.bytes_read
    hidden_ND = torch.randn(5, 64, generator=torch.Generator().manual_seed(3)).to(dtype)
    for layer in held.layers:
        arguments = (layer, hidden_ND, [1, 3], [2, 3])
        assert torch.equal(copied.run(*arguments), held.run(*arguments))
    assert copied.weight_bytes * 3 == held.weight_bytes * 2


def _write_even(folder: Path) -> Path:
    from tests.models.checkpoint_files import hf_tensors, write_hf

    tensors, generator = hf_tensors(), torch.Generator().manual_seed(8)

    def extent(name: str, number: int) -> int:
        return {32: 64, 24: 64, 48: 128, 40: 40}.get(number, number) if number != 4 else 4

    wide = {}
    for name, tensor in tensors.items():
        shape = [extent(name, each) for each in tensor.shape]
        if "self_attn" in name:
            rows = tensor.shape[0] if "o_proj" not in name else 64
            shape = [rows, 64] if "o_proj" not in name else [64, 32]
        wide[name] = torch.randn(shape, generator=generator)
    return write_hf(folder, wide, hidden_size=64, intermediate_size=64)


@pytest.mark.parametrize(
    ("held_as", "wanted", "words"),
    [((torch.bfloat16,), (1,), "expected ELEMENT_BFLOAT16"), ((torch.float32,), (2,), "found 2: ask another holder")],
)
def test_what_the_peer_does_not_have_is_read_from_files(copy, caplog, held_as, wanted, words):
    with caplog.at_level(logging.WARNING):
        _, copied, source = copy(torch.float32, None, wanted=wanted, held_as=held_as)
    assert source.fetched_bytes == 0
    assert copied.expert_ids == wanted
    assert [words in record.getMessage() for record in caplog.records] == [True]


def test_another_model_is_refused(copy, tiny_folder):
    _, _, source = copy(torch.float32, None)
    with grpc.insecure_channel(source.address) as channel:
        request = weights_pb2.FetchRequest(model_fingerprint="another", expert_id=1)
        with pytest.raises(grpc.RpcError) as refused:
            list(weights_pb2_grpc.WeightsServiceStub(channel).Fetch(request, timeout=WAIT_S))
    assert isinstance(errors.from_rpc_error(refused.value, "peer"), errors.ModelMismatch)


def flip_a_bit(responses: Fetched) -> Fetched:
    for response in responses:
        if response.chunk.data:
            response.chunk.data = bytes([response.chunk.data[0] ^ 1]) + response.chunk.data[1:]
        yield response


def swap_matrices(responses: Fetched) -> Fetched:
    for response in responses:
        if response.WhichOneof("message") == "header":
            response.header.matrix = 3 - response.header.matrix
        yield response


def leave_out_chunks(responses: Fetched) -> Fetched:
    return (response for response in responses if response.WhichOneof("message") == "header")


def end_early(responses: Fetched) -> Fetched:
    yield next(responses)


def send_more(responses: Fetched) -> Fetched:
    yield from responses
    yield weights_pb2.FetchResponse()


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (flip_a_bit, "changed on the way"),
        (swap_matrices, "expected layer, matrix"),
        (leave_out_chunks, "expected a chunk"),
        (end_early, "expected a chunk"),
        (send_more, "expected the fetch to end"),
    ],
)
def test_a_corrupted_fetch_is_refused_and_files_are_read(copy, tiny_folder, caplog, alter, words):
    held, _, source = copy(torch.float32, None)
    server, address = serve_altered(source.address, alter)
    try:
        with caplog.at_level(logging.WARNING):
            altered = PeerSource(address, open_checkpoint(tiny_folder), torch.float32)
            copied = ExpertWeights.load(altered, [0, 3], torch.float32)
    finally:
        server.stop(0).wait()
    assert [words in record.getMessage() for record in caplog.records] == [True]
    arguments = (1, HIDDEN_ND, [0, 3], [40, 40])
    assert torch.equal(copied.run(*arguments), held.run(*arguments))


def test_one_fetch_at_a_time_is_served(wide_folder):
    held = ExpertWeights.load(open_checkpoint(wide_folder), [0], torch.float32)
    server = ExpertServer(held)
    server.start()
    with grpc.insecure_channel(server.address, options=channel_options()) as channel:
        stub = weights_pb2_grpc.WeightsServiceStub(channel)
        request = weights_pb2.FetchRequest(
            model_fingerprint=held.fingerprint,
            element=weights_pb2.ELEMENT_FLOAT32,
            tokens=weights_pb2.ELEMENT_FLOAT32,
        )
        first = stub.Fetch(request, timeout=WAIT_S)
        next(first)
        with pytest.raises(grpc.RpcError) as refused:
            next(stub.Fetch(request, timeout=WAIT_S))
        refusal = errors.from_rpc_error(refused.value, "peer")
        assert isinstance(refusal, errors.Overloaded)
        assert refusal.retry_after_ms > 0
        second = PeerSource(server.address, open_checkpoint(wide_folder), torch.float32)
        with futures.ThreadPoolExecutor(1) as pool:
            loading = pool.submit(ExpertWeights.load, second, [0], torch.float32)
            first.cancel()
            assert loading.result(WAIT_S).expert_ids == (0,)
        assert second.fetched_bytes == held.weight_bytes
    server.stop()


def test_a_fetch_can_be_resumed_by_layer(copy):
    held, _, source = copy(torch.float32, None)
    with grpc.insecure_channel(source.address, options=channel_options()) as channel:
        stub = weights_pb2_grpc.WeightsServiceStub(channel)
        request = weights_pb2.FetchRequest(
            model_fingerprint=held.fingerprint,
            expert_id=0,
            element=weights_pb2.ELEMENT_FLOAT32,
            tokens=weights_pb2.ELEMENT_FLOAT32,
        )
        responses = list(stub.Fetch(request, timeout=WAIT_S))
        assert [response.header.layer for response in responses if response.HasField("header")] == [1, 1, 3, 3]
        request.first_layer = 2
        resumed = list(stub.Fetch(request, timeout=WAIT_S))
        assert resumed == responses[len(responses) // 2 :]


def test_a_process_starts_from_a_peers_memory(run, wide_folder):
    first = run("--checkpoint", wide_folder, "--experts", "0-2")
    second = run("--checkpoint", wide_folder, "--experts", "1,2", "--from-peer", first.ready["address"])
    expert_bytes = first.ready["weight_bytes"] // 3
    assert second.ready["fetched_bytes"] == second.ready["loaded_bytes"] == 2 * expert_bytes
    answers = []
    for replica in (first, second):
        client: StreamClient = replica.connect()
        answers.append(outputs_of(client.ask(dispatch_of(WIDE_ND, {1: 1, 2: 2}))))
        client.close()
    assert torch.equal(*answers)


def test_a_peer_killed_during_a_fetch_costs_no_more_than_reading_files(run, wide_folder, caplog):
    first = run("--checkpoint", wide_folder, "--experts", "0-2")
    begun: queue.SimpleQueue[None] = queue.SimpleQueue()
    is_dead = threading.Event()

    def pause_in_the_middle(responses: Fetched) -> Fetched:
        for number, response in enumerate(responses):
            if number == 5:
                begun.put(None)
                assert is_dead.wait(WAIT_S)
            yield response

    server, address = serve_altered(first.ready["address"], pause_in_the_middle)
    source = PeerSource(address, open_checkpoint(wide_folder), torch.float32)
    with futures.ThreadPoolExecutor(1) as pool, caplog.at_level(logging.WARNING):
        loading = pool.submit(ExpertWeights.load, source, [1, 2], torch.float32)
        begun.get(timeout=WAIT_S)
        first.process.kill()
        first.process.wait(WAIT_S)
        is_dead.set()
        copied = loading.result(WAIT_S)
    server.stop(0).wait()
    assert "reading files from here on" in caplog.text
    expected = ExpertWeights.load(open_checkpoint(wide_folder), [1, 2], torch.float32)
    assert torch.equal(copied.run(0, WIDE_ND, [1, 2], [1, 2]), expected.run(0, WIDE_ND, [1, 2], [1, 2]))


def test_a_process_whose_peer_is_gone_reads_files_and_says_so(run, tiny_folder):
    replica = run("--checkpoint", tiny_folder, "--from-peer", "127.0.0.1:9")
    assert replica.ready["expert_ids"] == [0, 1, 2, 3]
    assert replica.ready["fetched_bytes"] == 0
    replica.process.terminate()
    code, said = replica.end()
    assert code == 0
    assert "reading files from here on" in said


def test_chunks_are_far_below_the_message_limit():
    assert CHUNK_BYTES <= 2**20
