"""The FrontDoor deployment: listens for both APIs. What they do is in `service.py`, `grpc/api.py` and `openai/`."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import ray
from ray.serve.handle import DeploymentHandle

from cluster.deployment_plan import DeploymentPlan
from cluster.directory_client import DirectoryClient
from cluster.first_tokens import FirstTokenMeter
from cluster.frozen_heap import freeze_heap
from cluster.given_up import end_when_given_up
from cluster.lame_duck import LameDuck
from cluster.listeners import Listeners
from cluster.logs import configure_logs
from cluster.names import APP, FRONT_DOOR, LONG_ROUTER, ROUTER
from cluster.planned_model import load_planned_model
from cluster.pool import PoolAccess
from cluster.ray_nodes import follow_draining_nodes
from cluster.serve_replicas import ServeReplicas
from cluster.serve_router_client import ServeRouterClient
from cluster.service import InferenceService
from cluster.trace_start import start_tracing

_NEVER_S = 1e9
"""How long there has been no sequence where there cannot be any; finite, as Ray Serve averages it."""
_GRACE_S = 2.0
"""Seconds that requests have to end when a replica is stopped that was drained before, as `herd serve` does."""


class FrontDoor:
    """A front door replica. Clients talk to it directly: docs/decisions/0003-clients-talk-to-the-front-door.md.

    Args:
        plan: what is served.
        handles: of all other deployments. Those of Experts and Context are here so that they are deployed, and never
            called.
    """

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it, in the loop that everything here belongs to
        self, plan: DeploymentPlan, *handles: DeploymentHandle
    ) -> None:
        end_when_given_up()
        settings = plan.settings
        configure_logs(settings.log)
        directory = DirectoryClient(APP, ROUTER)
        clients = {
            each.deployment_name: ServeRouterClient(
                each,
                directory,
                wake_s=None if plan.pools[each.deployment_name].bounds.min_replicas else settings.router.patience_s,
            )
            for each in handles
            if each.deployment_name in plan.pools
        }
        long = PoolAccess(clients[LONG_ROUTER], settings.long.limits(settings.limits)) if plan.long else None
        self._service = InferenceService(
            load_planned_model(plan),
            clients[ROUTER],
            settings.limits,
            long=long,
            tracing=start_tracing(settings.trace, "front door"),
        )
        self._first_tokens = FirstTokenMeter(self._service.metrics)
        self._drain_s = settings.limits.drain_s
        self._lame_duck = _lame_duck(self._service, settings.limits.lame_duck_s)
        self._listeners = Listeners(self._service, plan.settings)
        await self._listeners.start()
        freeze_heap()

    async def drain(self) -> None:
        """Refuse new requests; those that run go on."""
        self._service.drain()

    async def num_sequences(self) -> int:
        """Count the sequences in flight, those that wait for a router included."""
        return self._service.num_sequences

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Ray Serve what FrontDoorPolicy wants to know."""
        admission, long = self._service.admission, self._service.long
        return {
            "sequences": admission.num_sequences,
            "queued_prompt_tokens": admission.num_queued_prompt_tokens,
            "idle_s": admission.idle_s,
            "long_sequences": long.admission.num_sequences if long else 0,
            "long_idle_s": long.admission.idle_s if long else _NEVER_S,
            "ttft_s": self._first_tokens.mean_s(),
        }

    async def check_health(self) -> None:
        """Raise if this replica is of no use any more: Ray Serve replaces it then."""
        self._listeners.check()

    async def __del__(self) -> None:
        """Send others elsewhere, stop listening, let requests that run finish: Ray Serve calls this at the end."""
        if not hasattr(self, "_listeners"):
            return
        if self._service.is_draining:
            await self._listeners.stop(_GRACE_S)
        else:
            await self._lame_duck.end()
            await self._listeners.stop(self._drain_s)


def _lame_duck(service: InferenceService, lame_duck_s: float) -> LameDuck:
    """Return a LameDuck that knows Ray's nodes."""
    replicas = ServeReplicas(APP)

    async def find_nodes() -> frozenset[str]:
        found, problem = await replicas.get()
        running = [each for each in found if each.deployment == FRONT_DOOR and each.state == "RUNNING"]
        return frozenset() if problem else frozenset(each.node_id for each in running)

    loop = asyncio.get_running_loop()
    made = LameDuck(service, lame_duck_s, ray.get_runtime_context().get_node_id(), find_nodes)

    def note(node_ids: frozenset[str]) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(made.note_draining, node_ids)

    follow_draining_nodes(note)
    return made
