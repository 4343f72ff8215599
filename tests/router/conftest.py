"""Fixtures for tests of the transport."""

from __future__ import annotations

import pytest

from router.transport.grpc import GrpcTransport
from router.transport.timeouts import DispatchTimeouts
from tests.router.live_transport import placement_of, wait_connected
from tests.router.scripted_replica import ScriptedReplica


@pytest.fixture
def cluster():
    """Start replicas and a transport that knows them: `cluster([(0, 1), (2, 3)])`."""
    replicas: list[ScriptedReplica] = []
    transports: list[GrpcTransport] = []

    def start(groups, *, answer_s=10.0, patience_s=15.0, **options):
        replicas.extend(ScriptedReplica(f"replica-{i}", tuple(experts)) for i, experts in enumerate(groups))
        timeouts = DispatchTimeouts(answer_s=answer_s, patience_s=patience_s)
        transport = GrpcTransport(router_id="test", fingerprint="f00d", timeouts=timeouts, **options)
        transports.append(transport)
        transport.update(placement_of(replicas, 1))
        wait_connected(transport, replicas)
        return transport, replicas

    yield start
    for transport in transports:
        transport.close()
    for replica in replicas:
        replica.stop()
