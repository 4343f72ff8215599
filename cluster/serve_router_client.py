"""Reaches the routers through Ray Serve."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from cluster.carrier import Packed
from cluster.carrier_receiver import CarrierReceiver, Inbox
from cluster.directory_client import DirectoryClient
from cluster.placement_info import placement_info
from cluster.router_client import PlacementInfo, RouterLoad
from cluster.routing import CARRY
from protos.errors import InternalError, NoReplica, Overloaded, ReplicaUnavailable, ServingError
from router.request import EngineEvent, GenerationRequest

_LAST_EVENTS_S = 5.0
"""Seconds that a sequence's last events may take longer on the carrier than the end of its call does."""
ACCEPT_S = 5.0
"""Seconds a router has to accept or refuse a sequence, waiting for one to start included."""
_CAREFUL_S = 30.0
"""Seconds after a router was lost in which routers are asked for a sign of life before they get a sequence: longer than
Ray Serve trusts what it knows of a router (10 s), about as long as it takes to replace one that hangs."""
_PART_TO_WAKE = 0.95
"""Part of a request's time in which a router may start."""
_LOAD_S = 1.0
"""Seconds a router has to tell its load."""


class ServeRouterClient:
    """Implements RouterClient over a handle of the Router deployment.

    Args:
        handle: as bound into the front door.
        directory: asked where the experts are; None: routers are.
        accept_s: seconds a router has to accept a sequence.
        wake_s: seconds a sequence waits for a router to start where there may be none; None: there is always one.
        receiver_options: for the CarrierReceiver.
    """

    def __init__(
        self,
        handle: DeploymentHandle,
        directory: DirectoryClient | None = None,
        *,
        accept_s: float = ACCEPT_S,
        wake_s: float | None = None,
        **receiver_options: float,
    ) -> None:
        self._handle = handle
        self._directory = directory
        self._generate = handle.options(method_name="generate", stream=True)
        self._carry = handle.options(method_name=CARRY, stream=True)
        self._door_id = uuid.uuid4().hex
        self._accept_s = accept_s
        self._wake_s = wake_s
        self._receiver: CarrierReceiver | None = None
        self._receiver_options = receiver_options
        self._watching: set[asyncio.Task[None]] = set()
        self._lost_at = float("-inf")

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[EngineEvent], None]:
        """Generate one sequence; see RouterClient."""
        loop = asyncio.get_running_loop()
        receiver = self._receiver = self._receiver or CarrierReceiver(self._begin_carrier, **self._receiver_options)
        inbox = receiver.open(request.request_id)
        is_careful = loop.time() < self._lost_at + _CAREFUL_S
        calls = self._generate.remote(request, self._door_id, is_careful)
        watch: asyncio.Task[None] | None = None
        try:
            receiver.follow(request.request_id, await self._accepted(calls, request))
            watch = asyncio.create_task(_watch(calls, inbox))
            self._watching.add(watch)
            watch.add_done_callback(self._watching.discard)
            yield []
            while not inbox.is_done:
                yield await inbox.take()
        except ReplicaUnavailable:
            self._lost_at = loop.time()
            raise
        finally:
            receiver.close(request.request_id)
            if not inbox.has_ended:
                # Ray cancels a call whose caller is cancelled while it awaits it; one that is dropped runs on.
                calls.cancel()
                if watch is not None:
                    watch.cancel()

    async def _accepted(
        self, calls: DeploymentResponseGenerator[str | ServingError], request: GenerationRequest
    ) -> str:
        """Return the router that accepted a sequence.

        Raises:
            ServingError: it was refused, or there is no router that answers.
        """
        try:
            with _explained():
                answer = await self._answer(calls, request)
        except StopAsyncIteration:
            raise ReplicaUnavailable(
                "expected a router to accept the sequence, found its answer empty; send it again"
            ) from None
        if isinstance(answer, ServingError):
            raise answer
        return answer

    async def _answer(
        self, calls: DeploymentResponseGenerator[str | ServingError], request: GenerationRequest
    ) -> str | ServingError:
        """Return what a router answers. While none runs and one may be started, there is more time.

        Raises:
            ReplicaUnavailable: no answer, though a router runs.
            NoReplica: no router started in time.
        """
        now_s = asyncio.get_running_loop().time
        wake_s = self._time_to_wake_s(request)
        give_up_s = now_s() + wake_s
        answer: asyncio.Task[str | ServingError] = asyncio.ensure_future(anext(calls))
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        was_there = True
        try:
            while not (await asyncio.wait({answer}, timeout=min(self._accept_s, give_up_s - now_s())))[0]:
                was_there, is_new = self._wake_s is None or await self._runs_one(), not was_there
                if was_there and not is_new:  # one that has just started has its time to answer
                    raise ReplicaUnavailable(
                        f"expected a router to accept the sequence within {self._accept_s:g} s, found no answer; send "
                        "it again"
                    )
                if now_s() >= give_up_s:
                    raise NoReplica(f"expected a router to start within {wake_s:g} s, found none; try again later")
            return answer.result()
        finally:
            answer.cancel()

    def _time_to_wake_s(self, request: GenerationRequest) -> float:
        """Return the seconds a sequence may wait for a router to start: less than it has, so that it hears why."""
        if self._wake_s is None:
            return math.inf
        return min(self._wake_s, math.inf if request.timeout_s is None else _PART_TO_WAKE * request.timeout_s)

    async def _runs_one(self) -> bool:
        """Tell whether a router runs, whatever it does."""
        try:
            replies = await self._handle.broadcast("load")._fetch_replica_results_async()
        except DeploymentUnavailableError:
            return False
        for each in replies:
            each.cancel()
        return True

    async def _begin_carrier(self, replica_id: str) -> AsyncGenerator[Packed, None]:
        calls = self._carry.remote(replica_id, self._door_id)
        try:
            with _explained():
                async for batch in calls:
                    yield batch
        finally:
            calls.cancel()

    async def load(self) -> tuple[RouterLoad, ...]:
        """Return the load of every router replica that answers within a second; see RouterClient."""
        try:
            # Not `results_async`, which gives all answers or none: one router that hangs must not hide the others.
            replies = await self._handle.broadcast("load")._fetch_replica_results_async()
        except DeploymentUnavailableError:
            if self._wake_s is None:
                raise _no_router() from None
            return ()
        asked = [asyncio.ensure_future(reply.get_async()) for reply in replies]
        done, late = await asyncio.wait(asked, timeout=_LOAD_S)
        for each in late:
            each.cancel()
        answers = [each.result() for each in asked if each in done and not each.cancelled() and not each.exception()]
        loads = tuple(answer for answer in answers if isinstance(answer, RouterLoad))
        if not loads:
            raise NoReplica("expected at least one router, found none that answers; wait for one to start")
        return loads

    async def describe(self) -> PlacementInfo:
        """Return where the experts are and which replicas there are; what a router knows if the directory is silent."""
        if self._directory is not None:
            try:
                return placement_info(await self._directory.overview())
            except ReplicaUnavailable as error:
                if self._wake_s is not None and not await self._runs_one():
                    raise NoReplica(error.message) from error
        with _explained():
            answer: PlacementInfo = await self._handle.describe.remote()
        return answer


async def _watch(calls: DeploymentResponseGenerator[str | ServingError], inbox: Inbox) -> None:
    """See a sequence's call to its end, which says nothing, and tell the inbox when that is not the sequence's end."""
    try:
        with _explained():
            async for _ in calls:
                pass
        if not inbox.has_ended:
            await asyncio.sleep(_LAST_EVENTS_S)
        inbox.fail(ReplicaUnavailable("expected the router to finish the sequence, found it given up; send it again"))
    except ServingError as error:
        inbox.fail(error)


def _no_router() -> NoReplica:
    return NoReplica("expected a router, found none running; wait for one to start")


@contextmanager
def _explained() -> Iterator[None]:
    """Raise what a failed call to a router means in place of what Ray raises.

    Raises:
        ServingError: see `explain`.
    """
    try:
        yield
    except (RayError, DeploymentUnavailableError, BackPressureError) as error:
        raise explain(error) from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # Nobody cancelled us: so Ray Serve tells that the router's side was cancelled.
        raise ReplicaUnavailable(
            "expected the router to finish the call, found it cancelled there; send it again"
        ) from error


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
        return _no_router()
    return ReplicaUnavailable(f"expected an answer from a router, found {type(error).__name__}; try again")
