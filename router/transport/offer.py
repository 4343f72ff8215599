"""The memory that a router offers to a replica for one stream's tensors, and which of it the replica takes."""

from __future__ import annotations

import logging

import torch

from protos.cuda_driver import DriverError
from protos.device_memory import DeviceSegment
from protos.expert.v1 import expert_pb2
from protos.segment import Segment
from protos.shared_memory import SharedSegment
from router.transport.health import LaneInUse

_LOG = logging.getLogger(__name__)


class MemoryOffer:
    """Memory of the host, and of the GPU that the router computes on.

    Args:
        device: where the router's tokens are.
        is_on_this_host: whether the replica may be able to map a GPU's memory; a GPU's is taken at once, and in full.
        shares_memory: False offers none at all.
    """

    def __init__(self, device: torch.device, *, is_on_this_host: bool, shares_memory: bool) -> None:
        self._device = device
        self._host = SharedSegment.create() if shares_memory else None
        self._on_device: DeviceSegment | None = None
        self._reason = "" if shares_memory else "this router shares no memory"
        if shares_memory and DeviceSegment.takes(device):
            self._offer_device(is_on_this_host)

    def write(self, hello: expert_pb2.Hello) -> None:
        """Put the offer into the first message of a stream."""
        if self._host is not None:
            hello.shared_memory.CopyFrom(self._host.offer())
        if self._on_device is not None:
            hello.device_memory.CopyFrom(self._on_device.offer())

    def taken(self, welcome: expert_pb2.Welcome, replica_id: str) -> tuple[Segment | None, LaneInUse]:
        """Return the segment that a replica has taken, None where it has taken none; what it has not is given up."""
        segment = self._taken(welcome)
        if self._on_device is not None and not welcome.shares_device_memory:
            self._on_device.decline()
            self._reason = (
                welcome.device_memory_refusal or "the replica knows of no GPU memory: it is of an older version"
            )
        if segment is None and not self._reason:
            self._reason = "the replica is on another host, in another container or of another user"
        self.end()
        in_use = LaneInUse("inline" if segment is None else segment.lane, self._reason)
        _LOG.debug("tensors to replica %s travel %s%s", replica_id, in_use.lane, in_use.reason and f": {in_use.reason}")
        return segment, in_use

    def end(self) -> None:
        """Give up what nobody has taken. Idempotent."""
        if self._host is not None:
            self._host.end_offer()
        self._host = self._on_device = None

    def _taken(self, welcome: expert_pb2.Welcome) -> Segment | None:
        if welcome.shares_device_memory:
            return self._on_device
        return self._host if welcome.shares_memory else None

    def _offer_device(self, is_on_this_host: bool) -> None:
        if not is_on_this_host:
            self._reason = "the replica is on another host"
            return
        try:
            self._on_device = DeviceSegment.create(self._device)
        except (DriverError, RuntimeError) as error:  # torch raises the latter for what the driver refuses
            self._reason = str(error)
