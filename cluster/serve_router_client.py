"""Reaches the routers through Ray Serve."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable
from typing import TypeVar

from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from cluster.carrier import Packed
from cluster.carrier_receiver import CarrierReceiver, Inbox
from cluster.router_client import PlacementInfo, RouterLoad
from cluster.routing import CARRY
from protos.errors import Draining, InternalError, NoReplica, Overloaded, ReplicaUnavailable, ServingError
from router.request import EngineEvent, GenerationRequest

Answer = TypeVar("Answer")

_LAST_EVENTS_S = 5.0
"""Seconds that a sequence's last events may take longer on the carrier than the end of its call does."""


class ServeRouterClient:
    """Implements RouterClient over a handle of the Router deployment.

    Args:
        handle: as bound into the front door.
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._generate = handle.options(method_name="generate", stream=True)
        self._carry = handle.options(method_name=CARRY, stream=True)
        self._door_id = uuid.uuid4().hex
        self._receiver: CarrierReceiver | None = None
        self._watching: set[asyncio.Task[None]] = set()
        self._is_draining = False

    def drain(self) -> None:
        """Refuse new sequences; those that run go on."""
        self._is_draining = True

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[EngineEvent], None]:
        """Generate one sequence; see RouterClient."""
        if self._is_draining:
            raise Draining("expected a server that stays, found one that is stopping; send the request elsewhere")
        receiver = self._receiver = self._receiver or CarrierReceiver(self._begin_carrier)
        inbox = receiver.open(request.request_id)
        calls = self._generate.remote(request, self._door_id)
        watch: asyncio.Task[None] | None = None
        try:
            receiver.follow(request.request_id, await _accepted(calls))
            watch = asyncio.create_task(_watch(calls, inbox))
            self._watching.add(watch)
            watch.add_done_callback(self._watching.discard)
            yield []
            while not inbox.is_done:
                yield await inbox.take()
        finally:
            receiver.close(request.request_id)
            if not inbox.has_ended:
                # Ray cancels a call whose caller is cancelled while it awaits it; one that is dropped runs on.
                calls.cancel()
                if watch is not None:
                    watch.cancel()

    async def _begin_carrier(self, replica_id: str) -> AsyncGenerator[Packed, None]:
        calls = self._carry.remote(replica_id, self._door_id)
        try:
            async for batch in calls:
                yield batch
        except (RayError, DeploymentUnavailableError, BackPressureError) as error:
            raise explain(error) from error
        finally:
            calls.cancel()

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


async def _accepted(calls: DeploymentResponseGenerator[str | ServingError]) -> str:
    """Return the router that accepted a sequence.

    Raises:
        ServingError: it was refused, or there is no router.
    """
    try:
        answer: str | ServingError = await anext(calls)
    except StopAsyncIteration:
        raise ReplicaUnavailable(
            "expected a router to accept the sequence, found its answer empty; send it again"
        ) from None
    except (RayError, DeploymentUnavailableError, BackPressureError) as error:
        raise explain(error) from error
    if isinstance(answer, ServingError):
        raise answer
    return answer


async def _watch(calls: DeploymentResponseGenerator[str | ServingError], inbox: Inbox) -> None:
    """See a sequence's call to its end, which says nothing, and tell the inbox when that is not the sequence's end."""
    try:
        async for _ in calls:
            pass
        if not inbox.has_ended:
            await asyncio.sleep(_LAST_EVENTS_S)
        inbox.fail(ReplicaUnavailable("expected the router to finish the sequence, found it given up; send it again"))
    except (RayError, DeploymentUnavailableError, BackPressureError) as error:
        inbox.fail(explain(error))


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
