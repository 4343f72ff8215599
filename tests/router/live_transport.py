"""A gRPC transport with scripted replicas behind it, and dispatches to send over it."""

from __future__ import annotations

import threading
import time

import torch

from router.placement import Placement
from router.plan import plan_dispatch
from router.transport.grpc import GrpcTransport

EXPERTS = range(4)
WAIT_S = 20
HIDDEN_TD = torch.arange(24, dtype=torch.float32).reshape(6, 4)
EXPERT_IDS_TK = torch.tensor([[3], [0], [1], [0], [2], [3]])


def placement_of(replicas, version) -> Placement:
    return Placement(version=version, holders=tuple(replica.holder for replica in replicas))


def wait_connected(transport: GrpcTransport, replicas) -> None:
    """Wait for each replica in turn: with others about, an expert is ready as soon as any holder is."""
    assert all(
        wait_until(lambda replica=replica: transport.stream(replica.replica_id).is_ready) for replica in replicas
    )


def wait_until(holds) -> bool:
    end = time.monotonic() + WAIT_S
    while not holds():
        if time.monotonic() > end:
            return False
        threading.Event().wait(0.005)
    return True


def send_to(transport: GrpcTransport, replica_ids):
    """Dispatch every token, expert e to the e-th of some replicas; return what is pending and what will come."""
    plan = plan_dispatch(
        EXPERT_IDS_TK,
        lambda counts: {expert: ((replica_ids[expert % len(replica_ids)], n),) for expert, n in counts.items()},
    )
    hidden_ND = HIDDEN_TD[plan.token_rows_N]
    return transport.dispatch(7, plan, hidden_ND), hidden_ND * 2


def run(transport: GrpcTransport) -> torch.Tensor:
    """Dispatch every token and bring the outputs back into the tokens' order."""
    plan = plan_dispatch(EXPERT_IDS_TK, transport.assign)
    outputs_ND = transport.dispatch(7, plan, HIDDEN_TD[plan.token_rows_N]).wait()
    return torch.empty_like(HIDDEN_TD).index_copy(0, plan.token_rows_N, outputs_ND)
