"""Attaches to memory that a router offers with hello: of the GPU that computes here, or of the host."""

from __future__ import annotations

import logging

import torch

from protos.cuda_driver import DriverError
from protos.device_memory import DeviceSegment
from protos.expert.v1 import expert_pb2
from protos.segment import Segment
from protos.shared_memory import SharedSegment

_LOG = logging.getLogger(__name__)


def attach(hello: expert_pb2.Hello, welcome: expert_pb2.Welcome, device: torch.device) -> Segment | None:
    """Return the memory that a stream's tensors lie in from here on, None for none, and say so in the welcome.

    Args:
        hello: what is offered.
        welcome: what the router is told.
        device: where experts are computed.
    """
    if hello.HasField("device_memory"):
        try:
            segment = DeviceSegment.attach(hello.device_memory, device)
        except (DriverError, RuntimeError) as error:  # torch raises the latter for what the driver refuses
            welcome.device_memory_refusal = str(error)
            _LOG.debug("tensors of router %s do not travel in GPU memory: %s", hello.router_id, error)
        else:
            welcome.shares_device_memory = True
            return segment
    shared = SharedSegment.attach(hello.shared_memory) if hello.HasField("shared_memory") else None
    welcome.shares_memory = shared is not None
    return shared
