"""A segment of a GPU's memory that a router offers to a replica on its own host, for one stream's tensors.

An allocation of its own, handed over as the handle CUDA gives out for it. It is not torch's memory, so neither its
caching nor its way of growing matters, and nobody sees more than the segment. That two processes share it is proven by
what they find in it.

    router                                    replica
    create ── handle, nonce ───────────────▶ attach: maps it, finds the nonce
       │◀───────────── tensors ─────────────▶ │
    last tensor gone                          last tensor gone
       │ waits for the mark ◀── writes the mark, unmaps
    frees

CUDA wants memory unmapped before it is freed. A replica that hangs is waited for some seconds and no longer, for it may
never come back; one that died has unmapped everything.
"""

from __future__ import annotations

import logging
import math
import secrets
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor

from protos.channel import MAX_MESSAGE_BYTES
from protos.cuda_driver import Driver, DriverError, load_driver
from protos.dlpack import bytes_at
from protos.expert.v1 import expert_pb2
from protos.segment import HEADER_BYTES, NONCE_BYTES, Segment

_LOG = logging.getLogger(__name__)

DEVICE_SEGMENT_BYTES = 32 * 1024 * 1024
"""Taken in full on the card for every stream. A multiple of 2 MiB: the driver hands out smaller ones in blocks with
others' data beside it, and would share all of a block."""
_MARK = NONCE_BYTES
"""Where a replica writes 1 before it unmaps a segment."""
_UNMAP_S, _LOOK_EVERY_S = 5.0, 0.01


class DeviceSegment(Segment):
    """A segment on a card. Made by `create` or `attach`.

    Args:
        device: the card that uses it here.
        contents: all of its bytes.
        handle: what to offer; empty at the end that was offered it.
    """

    lane = "cuda-ipc"

    def __init__(self, device: torch.device, contents: Tensor, handle: bytes) -> None:
        super().__init__(device, contents.numel())
        self._contents = contents
        self._handle = handle

    @staticmethod
    def takes(device: torch.device) -> bool:
        """Tell whether a device's tensors can be in such a segment, if the driver allows it."""
        return device.type == "cuda"

    @classmethod
    def create(cls, device: torch.device, num_bytes: int = DEVICE_SEGMENT_BYTES) -> DeviceSegment:
        """Return a new segment.

        Raises:
            DriverError: it is not to be had on this device.
        """
        card, driver = _card_of(device), load_driver()
        address = driver.allocate(card, num_bytes)
        try:
            handle = driver.export(card, address)
        except DriverError:
            driver.free(card, address)
            raise
        free = partial(_free_when_unmapped, driver, device, address)
        segment = cls(device, bytes_at(address, num_bytes, device, free), handle)
        header = torch.zeros(HEADER_BYTES, dtype=torch.uint8)
        header[:NONCE_BYTES] = torch.frombuffer(bytearray(secrets.token_bytes(NONCE_BYTES)), dtype=torch.uint8)
        segment._contents[:HEADER_BYTES].copy_(header)
        segment.settle()
        return segment

    @classmethod
    def attach(cls, offer: expert_pb2.DeviceMemory, device: torch.device) -> DeviceSegment:
        """Return the segment another process offers, for use on a device of this one.

        Raises:
            DriverError: it is not to be had here.
        """
        card, driver = _card_of(device), load_driver()
        num_bytes = offer.num_bytes
        if not HEADER_BYTES < num_bytes <= MAX_MESSAGE_BYTES:
            raise DriverError(f"expected {HEADER_BYTES} to {MAX_MESSAGE_BYTES} bytes to share, found {num_bytes}")
        address = driver.map(card, offer.handle)
        try:
            found_bytes = driver.num_bytes_from(card, address)
            if found_bytes < num_bytes:
                raise DriverError(f"expected {num_bytes} bytes behind the handle, found {found_bytes}")
            if _nonce_in(_header_at(address, device)) != offer.nonce:
                raise DriverError("the memory behind the handle is not what was offered: the router is on another host")
        except BaseException:
            driver.unmap(card, address)
            raise
        unmap = partial(_mark_and_unmap, driver, device, address)
        return cls(device, bytes_at(address, num_bytes, device, unmap), b"")

    def offer(self) -> expert_pb2.DeviceMemory:
        """Return what `attach` wants to know."""
        return expert_pb2.DeviceMemory(handle=self._handle, nonce=_nonce_in(self._contents), num_bytes=self.num_bytes)

    def end_offer(self) -> None:
        """Do nothing: a handle costs nothing, and who has it can map the memory only while it is there."""

    def decline(self) -> None:
        """Take note that the other process has not mapped it: then nothing is waited for before it is freed."""
        self._contents[_MARK] = 1

    def tensor(self, offset: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        """Return a range as a tensor of the device that shares it."""
        num_bytes = math.prod(shape) * dtype.itemsize
        return self._contents[offset : offset + num_bytes].view(dtype).view(tuple(shape))

    def settle(self) -> None:
        """Wait for this thread's stream on the device.

        An event that travels with the range would let the other side's stream wait instead of this thread (CUDA's
        handles of events); that is the next step where this wait shows.
        """
        wait_for(self.device)


def wait_for(device: torch.device) -> None:
    """Return once a device has done what this thread gave it to do; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _card_of(device: torch.device) -> int:
    """Return the number of the card that a device is."""
    if not DeviceSegment.takes(device):
        raise DriverError(f"expected tensors on an NVIDIA GPU, found them on {device}")
    return device.index or 0


def _header_at(address: int, device: torch.device) -> Tensor:
    """Return a segment's header, for as long as the segment is known to be there."""
    return bytes_at(address, HEADER_BYTES, device, lambda: None)


def _nonce_in(contents: Tensor) -> bytes:
    return bytes(contents[:NONCE_BYTES].tolist())


def _free_when_unmapped(driver: Driver, device: torch.device, address: int) -> None:
    """Free a segment that was created here, beside everything else: there may be something to wait for."""
    if sys.is_finalizing():
        return  # the process takes its memory with it
    with suppress(RuntimeError):  # likewise
        # No daemon: one that is inside of torch when the interpreter goes would end the process with an abort.
        threading.Thread(
            target=_wait_and_free, args=(driver, device, address), name="free-shared", daemon=False
        ).start()


def _wait_and_free(driver: Driver, device: torch.device, address: int) -> None:
    give_up_at = time.monotonic() + _UNMAP_S
    try:
        header = _header_at(address, device)
        while not header[_MARK] and time.monotonic() < give_up_at and threading.main_thread().is_alive():
            time.sleep(_LOOK_EVERY_S)
        driver.free(_card_of(device), address)
    except (DriverError, RuntimeError) as error:
        _LOG.warning("memory of %s shared with a replica could not be freed: %s", device, error)


def _mark_and_unmap(driver: Driver, device: torch.device, address: int) -> None:
    """Give up a segment that another process created, after what the device still does with it."""
    if sys.is_finalizing():
        return
    try:
        wait_for(device)
        _header_at(address, device)[_MARK] = 1
        wait_for(device)
        driver.unmap(_card_of(device), address)
    except (DriverError, RuntimeError) as error:
        _LOG.warning("a router's memory could not be unmapped from %s: %s", device, error)
