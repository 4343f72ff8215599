"""Reaches the routers through Ray Serve."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable
from typing import TypeVar

from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from cluster.router_client import PlacementInfo, RouterLoad
from protos.errors import Draining, InternalError, NoReplica, Overloaded, ReplicaUnavailable, ServingError
from router.request import EngineEvent, GenerationRequest

Answer = TypeVar("Answer")


class ServeRouterClient:
    """Implements RouterClient over a handle of the Router deployment.

    Args:
        handle: as bound into the front door.
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._generate = handle.options(method_name="generate", stream=True)
        self._is_draining = False

    def drain(self) -> None:
        """Refuse new sequences; those that run go on."""
        self._is_draining = True

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[EngineEvent], None]:
        """Generate one sequence; see RouterClient."""
        if self._is_draining:
            raise Draining("expected a server that stays, found one that is stopping; send the request elsewhere")
        answers = self._generate.remote(request)
        ended = False
        try:
            async for item in answers:
                if isinstance(item, ServingError):
                    raise item
                yield item
            ended = True
        except (RayError, DeploymentUnavailableError, BackPressureError) as error:
            raise explain(error) from error
        finally:
            if not ended:
                # Ray cancels a call whose caller is cancelled while it awaits it; one that is dropped runs on.
                answers.cancel()

    async def load(self) -> tuple[RouterLoad, ...]:
        """Return the load of every router replica that answers; none while draining, for nobody should be sent here."""
        if self._is_draining:
            return ()
        try:
            answers = await self._handle.broadcast("load").results_async(return_exceptions=True)
        except DeploymentUnavailableError:
            return ()
        return tuple(answer for answer in answers if isinstance(answer, RouterLoad))

    async def describe(self) -> PlacementInfo:
        """Return where the experts are, as one router sees it."""
        answer: PlacementInfo = await _ask(self._handle.describe.remote())
        return answer


async def _ask(answer: Awaitable[Answer]) -> Answer:
    try:
        return await answer
    except (RayError, DeploymentUnavailableError, BackPressureError) as error:
        raise explain(error) from error


def explain(error: Exception) -> ServingError:
    """Return what a failed call to a router means to a caller."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, ServingError):
            return cause
        return InternalError(f"a router failed: {type(cause).__name__}; its log says why, please report it")
    if isinstance(error, RayActorError):
        return ReplicaUnavailable("expected the router to finish the sequence, found its process gone; send it again")
    if isinstance(error, BackPressureError):
        return Overloaded("expected room at a router, found its queue full; try again later", retry_after_ms=1000)
    if isinstance(error, DeploymentUnavailableError):
        return NoReplica("expected a router, found none running; wait for one to start")
    return ReplicaUnavailable(f"expected an answer from a router, found {type(error).__name__}; try again")
