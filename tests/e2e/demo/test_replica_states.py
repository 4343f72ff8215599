"""What a running Herd tells of its replicas while they die, hang, start again and cannot."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import grpc
import pytest

from tests.e2e.reflected_client import ReflectedClient

pytestmark = pytest.mark.timeout(600)

SERVICE = "herd.inference.v1.InferenceService"
WAIT_S = 120
Row = dict[str, Any]


@pytest.fixture(scope="module")
def client(herd) -> Iterator[ReflectedClient]:
    with ReflectedClient(herd.grpc_address) as client:
        yield client


def rows(client: ReflectedClient, deployment: str) -> list[Row]:
    """Return what is told of a deployment's replicas."""
    found = client.call(f"{SERVICE}/GetServerInfo").get("replicas", [])
    return [each for each in found if each["deployment"] == deployment]


def serving(client: ReflectedClient, deployment: str) -> Row:
    """Return the only replica of a deployment once it serves."""
    return wait_for(client, deployment, lambda row: row["state"] == "REPLICA_STATE_READY")[-1]


def wait_for(client: ReflectedClient, deployment: str, is_it: Callable[[Row], bool]) -> list[Row]:
    """Return all that was told of a deployment until a row came that is it."""
    give_up_at, told = time.monotonic() + WAIT_S, []
    while time.monotonic() < give_up_at:
        with suppress(grpc.RpcError):  # on a busy machine the directory may take longer than it has
            for row in rows(client, deployment):
                told.append(row)
                if is_it(row):
                    return told
        time.sleep(0.05)
    raise AssertionError(f"found only {told[-3:]}")


def is_successor_of(victim: Row) -> Callable[[Row], bool]:
    """Tell of a row whether it is another replica that serves."""
    return lambda row: row["state"] == "REPLICA_STATE_READY" and row["replica_id"] != victim["replica_id"]


def test_every_deployment_has_its_replicas(client):
    for deployment in ("FrontDoor", "Router", "Experts-0", "Experts-1"):
        row = serving(client, deployment)
        assert os.path.exists(f"/proc/{row['pid']}")
        assert abs(time.time() - int(row["since_ms"]) / 1000) < 3600


@pytest.mark.parametrize("deployment", ["Experts-0", "Router"])
def test_a_replica_that_is_killed_is_told_to_start_and_then_to_serve(client, deployment):
    victim = serving(client, deployment)
    os.kill(victim["pid"], signal.SIGKILL)
    told = wait_for(client, deployment, is_successor_of(victim))
    starting = [row for row in told if row["state"] == "REPLICA_STATE_STARTING"]
    assert starting
    assert starting[-1]["replica_id"] == told[-1]["replica_id"]
    assert any(int(row.get("total_bytes", 0)) > 0 for row in starting)


def test_an_expert_replica_that_is_stopped_is_silent_until_it_continues(client):
    victim = serving(client, "Experts-1")
    os.kill(victim["pid"], signal.SIGSTOP)
    try:
        silent = wait_for(client, "Experts-1", lambda row: row["state"] == "REPLICA_STATE_SILENT")[-1]
    finally:
        os.kill(victim["pid"], signal.SIGCONT)
    assert silent["replica_id"] == victim["replica_id"]
    serving(client, "Experts-1")


def test_a_replica_that_cannot_start_is_told_to_have_failed_with_the_reason(client, folder):
    victim = serving(client, "Experts-0")
    weights, elsewhere = folder / "model.safetensors", folder / "taken-away"
    weights.rename(elsewhere)
    try:
        os.kill(victim["pid"], signal.SIGKILL)
        failed = wait_for(client, "Experts-0", lambda row: row["state"] == "REPLICA_STATE_FAILED")[-1]
    finally:
        elsewhere.rename(weights)
    assert "expected" in failed["reason"]
    assert str(folder) in failed["reason"]
    wait_for(client, "Experts-0", is_successor_of(victim))


def test_load_is_told_layer_by_layer(client):
    serving(client, "Experts-0")
    give_up_at = time.monotonic() + WAIT_S
    busy: set[int] = set()
    while len(busy) < 8 and time.monotonic() < give_up_at:
        for _ in client.stream(f"{SERVICE}/Generate", prompt="import os", stopping={"max_tokens": 64}):
            pass
        for load in client.call(f"{SERVICE}/GetServerInfo")["layer_loads"]:
            assert len(load["tokens_per_s"]) == 8
            if any(load["tokens_per_s"]):
                busy.add(int(load.get("layer", 0)))
    assert busy == set(range(8))
