"""The FrontDoor deployment: listens for both APIs. What they do is in `service.py`, `grpc/api.py` and `openai/`."""

from __future__ import annotations

from ray.serve.handle import DeploymentHandle

from cluster.directory_client import DirectoryClient
from cluster.first_tokens import FirstTokenMeter
from cluster.given_up import end_when_given_up
from cluster.listeners import Listeners
from cluster.names import APP, ROUTER
from cluster.plan import DeploymentPlan
from cluster.planned_model import load_planned_model
from cluster.serve_router_client import ServeRouterClient
from cluster.service import InferenceService

_GRACE_S = 2.0
"""Seconds that requests have to finish when a replica is stopped; `herd serve` has drained it before that."""


class FrontDoor:
    """A front door replica. Clients talk to it directly: docs/decisions/0003-clients-talk-to-the-front-door.md.

    Args:
        plan: what is served.
        router: the Router deployment.
        others: the Experts and Context deployments; named so that they are deployed, never called.
    """

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it, in the loop that everything here belongs to
        self, plan: DeploymentPlan, router: DeploymentHandle, *others: DeploymentHandle
    ) -> None:
        end_when_given_up()
        wake_s = None if plan.router_bounds.min_replicas else plan.settings.router.patience_s
        router_client = ServeRouterClient(router, DirectoryClient(APP, ROUTER), wake_s=wake_s)
        self._service = InferenceService(load_planned_model(plan), router_client, plan.settings.limits)
        self._first_tokens = FirstTokenMeter(self._service.metrics)
        self._listeners = Listeners(self._service, plan.settings)
        await self._listeners.start()

    async def drain(self) -> None:
        """Refuse new requests; those that run go on."""
        self._service.drain()

    async def num_sequences(self) -> int:
        """Count the sequences in flight, those that wait for a router included."""
        return self._service.num_sequences

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Ray Serve what FrontDoorPolicy wants to know."""
        admission = self._service.admission
        return {
            "sequences": admission.num_sequences,
            "queued_prompt_tokens": admission.num_queued_prompt_tokens,
            "idle_s": admission.idle_s,
            "ttft_s": self._first_tokens.mean_s(),
        }

    async def check_health(self) -> None:
        """Raise if this replica is of no use any more: Ray Serve replaces it then."""
        self._listeners.check()

    async def __del__(self) -> None:
        """Stop listening: Ray Serve calls this when the replica is stopped."""
        if hasattr(self, "_listeners"):
            await self._listeners.stop(_GRACE_S)
