"""Segments of a card's memory offered by one process and mapped by another, on a stand-in for NVIDIA's driver."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch

from protos import cuda_driver, device_memory
from protos.channel import MAX_MESSAGE_BYTES
from protos.cuda_driver import DriverError, load_driver
from protos.device_memory import DeviceSegment
from protos.dlpack import bytes_at
from protos.expert.v1 import expert_pb2
from protos.segment import HEADER_BYTES
from tests.protos.cuda_stand_in import compile_stand_in, host_as_card, num_mapped
from tests.router.live_transport import wait_until

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in needs gcc")

SIZE = 2 * 1024 * 1024
CPU = torch.device("cpu")
VALUES_ND = torch.arange(12, dtype=torch.float32).reshape(3, 4)

OTHER_PROCESS = """
import sys, torch
from protos.cuda_driver import DriverError
from protos.device_memory import DeviceSegment
from protos.expert.v1 import expert_pb2
from tests.protos.cuda_stand_in import install, num_mapped
install(sys.argv[1])
segment = None
for line in sys.stdin:
    command, _, offer = line.strip().partition(" ")
    try:
        if command == "attach":
            offer = expert_pb2.DeviceMemory.FromString(bytes.fromhex(offer))
            segment = DeviceSegment.attach(offer, torch.device("cpu"))
        elif command == "double":
            segment.tensor(4096, torch.float32, (3, 4)).mul_(2)
            segment.settle()
        elif command == "drop":
            segment = None
        elif command == "create":
            DeviceSegment.create(torch.device("cpu"))
        print("done", num_mapped(), flush=True)
    except DriverError as error:
        print(f"{error}; mapped", num_mapped(), flush=True)
"""


class OtherProcess:
    def __init__(self, library: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER_PROCESS, library], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, command: str, offer: expert_pb2.DeviceMemory | None = None) -> str:
        """Return what it says after a command, and how many segments it has mapped then."""
        self.process.stdin.write(f"{command} {offer.SerializeToString().hex() if offer else ''}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def leave(self) -> int:
        """Let it come to its end, and return its exit code."""
        try:
            self.process.communicate(timeout=30)
        finally:
            self.process.kill()
        return self.process.returncode


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return str(compile_stand_in(tmp_path_factory.mktemp("stand-in")))


@pytest.fixture
def card(library, monkeypatch):
    """Take the host for a card."""
    with host_as_card(library, monkeypatch):
        yield load_driver()


@pytest.fixture(scope="module")
def other(library):
    process = OtherProcess(library)
    yield process
    process.leave()


def test_both_processes_read_and_write_the_same_memory(card, other):
    segment = DeviceSegment.create(CPU, SIZE)
    segment.tensor(HEADER_BYTES, torch.float32, (3, 4)).copy_(VALUES_ND)
    assert other.tell("attach", segment.offer()) == "done 1"
    assert other.tell("double") == "done 1"
    assert torch.equal(segment.tensor(HEADER_BYTES, torch.float32, (3, 4)), VALUES_ND * 2)
    assert other.tell("drop") == "done 0"


def test_memory_is_freed_once_no_tensor_is_left_and_the_other_process_has_unmapped_it(card, other):
    segment = DeviceSegment.create(CPU, SIZE)
    view_ND = segment.tensor(HEADER_BYTES, torch.float32, (3, 4)).copy_(VALUES_ND)
    assert other.tell("attach", segment.offer()) == "done 1"
    del segment
    assert num_mapped() == 1
    assert torch.equal(view_ND, VALUES_ND)
    del view_ND
    assert other.tell("double") == "done 1"
    assert num_mapped() == 1
    assert other.tell("drop") == "done 0"
    assert wait_until(lambda: num_mapped() == 0)


def test_memory_is_freed_when_the_other_process_never_says_that_it_unmapped_it(card, monkeypatch):
    monkeypatch.setattr(device_memory, "_UNMAP_S", 0.0)
    DeviceSegment.create(CPU, SIZE)
    assert wait_until(lambda: num_mapped() == 0)


def test_an_offer_that_leads_elsewhere_is_declined_with_a_reason_and_leaves_nothing_mapped(card, other):
    segment = DeviceSegment.create(CPU, SIZE)
    good = segment.offer()

    def changed(**fields) -> expert_pb2.DeviceMemory:
        offer = expert_pb2.DeviceMemory(num_bytes=SIZE)
        offer.MergeFrom(good)
        for field, value in fields.items():
            setattr(offer, field, value)
        return offer

    declined = {
        "is not what was offered": changed(nonce=bytes(16)),
        "bytes behind the handle": changed(num_bytes=SIZE + 1),
        "bytes to share, found 0": changed(num_bytes=0),
        f"found {MAX_MESSAGE_BYTES + 1}": changed(num_bytes=MAX_MESSAGE_BYTES + 1),
        "handle of 64 bytes, found 63": changed(handle=good.handle[:63]),
        "means nothing here": changed(handle=bytes([255]) * 64),
    }
    for reason, offer in declined.items():
        said = other.tell("attach", offer)
        assert reason in said
        assert said.endswith("mapped 0")
    assert segment.tensor(0, torch.uint8, (32,)).tolist() == [*good.nonce, *bytes(16)]
    assert other.tell("attach", good) == "done 1"
    assert other.tell("drop") == "done 0"


def test_a_process_does_not_map_its_own_memory(card):
    segment = DeviceSegment.create(CPU, SIZE)
    with pytest.raises(DriverError, match="cuIpcOpenMemHandle_v2 returned CUDA_ERROR_INVALID_CONTEXT"):
        DeviceSegment.attach(segment.offer(), CPU)
    segment.decline()


def test_what_the_card_has_no_room_for_is_refused(card):
    with pytest.raises(DriverError, match="CUDA_ERROR_OUT_OF_MEMORY: the card has no room"):
        DeviceSegment.create(CPU, 2**40)


def test_without_a_driver_or_a_card_there_is_a_reason(monkeypatch):
    with pytest.raises(DriverError, match="expected tensors on an NVIDIA GPU, found them on cpu"):
        DeviceSegment.create(CPU)
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libno-such-driver.so")
    load_driver.cache_clear()
    with pytest.raises(DriverError, match="there is no NVIDIA driver"):
        DeviceSegment.create(torch.device("cuda", 0))
    load_driver.cache_clear()


def test_a_process_that_waits_to_free_memory_ends_at_once_and_well(card, other):
    assert other.tell("create") == "done 1"
    assert other.leave() == 0


def test_memory_that_torch_does_not_own_is_given_up_with_the_last_view_of_it():
    memory = torch.arange(64, dtype=torch.uint8)
    gone = []
    view = bytes_at(memory.data_ptr(), 64, CPU, lambda: gone.append(True))[32:].view(torch.int16)
    view.zero_()
    assert memory.tolist() == [*range(32), *[0] * 32]
    assert not gone
    del view
    assert gone == [True]
