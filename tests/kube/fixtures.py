"""A fake API server and Kubernetes' own client for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kubernetes import client

from tests.kube.api_server import FakeApiServer


@pytest.fixture
def server() -> Iterator[FakeApiServer]:
    """A Kubernetes API server."""
    with FakeApiServer() as server:
        yield server


@pytest.fixture
def core(server: FakeApiServer) -> Iterator[client.CoreV1Api]:
    """Kubernetes' own client, that tries nothing a second time."""
    with client.ApiClient(client.Configuration(host=server.url, retries=False)) as api:
        yield client.CoreV1Api(api)
