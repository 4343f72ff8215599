"""Segments of memory offered by one process and opened by another."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from protos.channel import MAX_MESSAGE_BYTES
from protos.errors import BadTensor
from protos.expert.v1 import expert_pb2
from protos.segment import HEADER_BYTES, write_shared
from protos.shared_memory import SharedSegment
from protos.tensor.v1 import tensor_pb2

SIZE = HEADER_BYTES + 64 * 1024
VALUES_ND = torch.arange(12, dtype=torch.float32).reshape(3, 4)

OTHER_PROCESS = """
import sys, torch
from protos.expert.v1 import expert_pb2
from protos.shared_memory import SharedSegment
segment = SharedSegment.attach(expert_pb2.SharedMemory.FromString(sys.stdin.buffer.read()))
segment.tensor(4096, torch.float32, (3, 4)).mul_(2)
"""


@pytest.fixture
def segment():
    segment = SharedSegment.create(SIZE)
    yield segment
    segment.end_offer()


def wire_at(offset: int) -> tensor_pb2.Tensor:
    wire = tensor_pb2.Tensor()
    write_shared(wire, VALUES_ND, offset)
    return wire


def test_what_another_process_writes_is_seen_here(segment):
    segment.tensor(HEADER_BYTES, torch.float32, (3, 4)).copy_(VALUES_ND)
    offer = segment.offer().SerializeToString()
    subprocess.run([sys.executable, "-c", OTHER_PROCESS], input=offer, check=True, timeout=60)
    found = segment.read(wire_at(HEADER_BYTES), dtype=torch.float32, shape=(3, 4))
    assert torch.equal(found, VALUES_ND * 2)


def test_mapped_memory_outlives_the_descriptor_and_the_segment(segment):
    other = SharedSegment.attach(segment.offer())
    segment.end_offer()
    view = other.tensor(HEADER_BYTES, torch.float32, (3, 4))
    segment.tensor(HEADER_BYTES, torch.float32, (3, 4)).copy_(VALUES_ND)
    del other
    assert torch.equal(view, VALUES_ND)


def test_a_segment_has_no_name_and_no_size_that_could_change(segment):
    fd = segment.offer().fd
    assert os.readlink(f"/proc/self/fd/{fd}") == "/memfd:herd (deleted)"
    for size in (0, SIZE * 2):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)


def offer_of(fd: int, nonce: bytes = bytes(16), num_bytes: int = SIZE) -> expert_pb2.SharedMemory:
    return expert_pb2.SharedMemory(pid=os.getpid(), fd=fd, nonce=nonce, num_bytes=num_bytes)


def test_an_offer_that_leads_elsewhere_is_declined(segment, tmp_path):
    good = segment.offer()
    plain = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    reader, writer = os.pipe()
    unsealed = os.memfd_create("herd", os.MFD_ALLOW_SEALING)
    for fd in (plain, unsealed):
        os.ftruncate(fd, SIZE)
    declined = [
        offer_of(good.fd, secret := good.nonce[::-1]),
        offer_of(good.fd, good.nonce[:8]),
        offer_of(good.fd, good.nonce, SIZE - 4096),
        offer_of(good.fd, good.nonce, MAX_MESSAGE_BYTES + 1),
        offer_of(good.fd, good.nonce, 0),
        offer_of(2**31 - 1, good.nonce),
        expert_pb2.SharedMemory(pid=2**31 - 1, fd=good.fd, nonce=good.nonce, num_bytes=SIZE),
        expert_pb2.SharedMemory(),
        *(offer_of(fd) for fd in (plain, reader, writer, unsealed)),
    ]
    assert secret != good.nonce
    assert [SharedSegment.attach(offer) for offer in declined] == [None] * len(declined)
    assert SharedSegment.attach(good) is not None
    for fd in (plain, reader, writer, unsealed):
        os.close(fd)


@pytest.mark.parametrize(
    "change",
    [
        {"shared": {"offset": 0}},
        {"shared": {"offset": HEADER_BYTES - 64}},
        {"shared": {"offset": HEADER_BYTES + 4}},
        {"shared": {"offset": SIZE - 32}},
        {"shared": {"offset": SIZE}},
        {"shared": {"offset": 2**64 - 64}},
        {"shared": {"num_bytes": 44}},
        {"shared": {"num_bytes": 2**64 - 1}},
        {"shape": [2, 4]},
        {"shape": [0, 4]},
        {"shape": [2**50, 4]},
        {"shape": [3, 5]},
        {"dtype": 2},
        {"data": b"0"},
    ],
    ids=str,
)
def test_a_range_that_is_not_one_whole_tensor_is_refused(segment, change):
    wire = wire_at(HEADER_BYTES)
    if "shape" in change:
        wire.ClearField("shape")
    wire.MergeFrom(tensor_pb2.Tensor(**change) if "shared" not in change else tensor_pb2.Tensor())
    for field, value in change.get("shared", {}).items():
        setattr(wire.shared, field, value)
    with pytest.raises(BadTensor, match="expected"):
        segment.read(wire, dtype=torch.float32, shape=(None, 4))
