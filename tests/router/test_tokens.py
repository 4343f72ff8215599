"""Tokens on a GPU, or on the CPU where there is none, on their way through the host's memory and back."""

from __future__ import annotations

import pytest
import torch

from experts.server import ExpertServer
from router.placement import ExpertHolder, Placement
from router.plan import plan_dispatch
from router.transport.grpc import GrpcTransport
from router.transport.tokens import Tokens, brought_to
from tests.router.live_transport import WAIT_S
from tests.router.test_shared_lane import WIDTH, TripledExperts

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def test_tokens_are_copied_to_the_host_once():
    hidden_ND = torch.randn(5, 4, device=DEVICE)
    tokens = Tokens(hidden_ND)
    assert tokens.hidden_ND is hidden_ND
    assert tokens.on_host_ND is tokens.on_host_ND
    assert tokens.on_host_ND.device.type == "cpu"
    assert torch.equal(tokens.on_host_ND, hidden_ND.cpu())


def test_what_is_there_is_copied_nowhere():
    hidden_ND = torch.randn(5, 4)
    assert Tokens(hidden_ND).on_host_ND is hidden_ND
    assert brought_to(hidden_ND.device, hidden_ND) is hidden_ND
    assert brought_to(torch.device("meta"), hidden_ND).device.type == "meta"


@pytest.mark.parametrize("share_from_bytes", [None, 1], ids=["inline", "shm"])
@pytest.mark.parametrize("num_replicas", [1, 2])
def test_outputs_are_on_the_device_of_the_tokens_and_in_no_slot(share_from_bytes, num_replicas):
    servers = [ExpertServer(TripledExperts()) for _ in range(num_replicas)]
    for server in servers:
        server.start()
    holders = tuple(
        ExpertHolder(replica_id=str(index), address=server.address, expert_ids=tuple(range(index, 4, num_replicas)))
        for index, server in enumerate(servers)
    )
    transport = GrpcTransport(router_id="test", fingerprint="f00d", share_from_bytes=share_from_bytes)
    transport.update(Placement(version=1, holders=holders))
    assert transport.wait_ready(range(4), WAIT_S)
    plan = plan_dispatch(torch.arange(4).reshape(-1, 1), transport.assign)
    hidden_ND = torch.randn(4, WIDTH, device=DEVICE)
    outputs_ND = transport.dispatch(1, plan, hidden_ND).wait()
    transport.dispatch(1, plan, -hidden_ND).wait()  # in the same slots
    assert outputs_ND.device == DEVICE
    assert torch.equal(outputs_ND, hidden_ND * 3)
    transport.close()
    for server in servers:
        server.stop()
