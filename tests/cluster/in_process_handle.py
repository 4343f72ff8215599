"""A handle of the Router deployment without Ray: calls methods of an object in this process, as Ray Serve would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

_END = object()


class InProcessHandle:
    """Has what ServeRouterClient uses of a DeploymentHandle.

    Args:
        replica: whose methods are called.
    """

    def __init__(self, replica: object, method_name: str = "__call__") -> None:
        self._replica = replica
        self._method_name = method_name
        self.calls: list[StreamingCall] = []
        self.runs = asyncio.Event()
        """Set while the replica runs; until then calls wait."""
        self.runs.set()

    def options(self, *, method_name: str, stream: bool) -> InProcessHandle:
        assert stream
        handle = InProcessHandle(self._replica, method_name)
        handle.calls, handle.runs = self.calls, self.runs
        return handle

    def broadcast(self, method_name: str) -> Broadcast:
        return Broadcast(getattr(self._replica, method_name), self.runs.is_set())

    def remote(self, *args: object) -> StreamingCall:
        call = StreamingCall(self._method_name, getattr(self._replica, self._method_name)(*args), self.runs)
        self.calls.append(call)
        return call


class Broadcast:
    """A call of every replica that runs: one, or none."""

    def __init__(self, method: Callable[[], Coroutine[Any, Any, Any]], runs: bool) -> None:
        self._method = method
        self._runs = runs

    async def _fetch_replica_results_async(self) -> list[Broadcast]:
        if not self._runs:
            from ray.serve._private.common import DeploymentID
            from ray.serve.exceptions import DeploymentUnavailableError

            raise DeploymentUnavailableError(DeploymentID(name="Router"))
        return [self]

    async def get_async(self) -> Any:
        return await self._method()

    def cancel(self) -> None:
        self._runs = False


class StreamingCall:
    """A call that runs in a task of its own, wherever its caller is; as an iterator, its answers."""

    def __init__(self, method_name: str, answers: AsyncGenerator[Any, None], runs: asyncio.Event) -> None:
        self.method_name = method_name
        self._answers = answers
        self._runs = runs
        self._arrived: asyncio.Queue[Any] = asyncio.Queue()
        self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            await self._runs.wait()
            async for answer in self._answers:
                self._arrived.put_nowait(answer)
            self._arrived.put_nowait(_END)
        except BaseException as error:
            self._arrived.put_nowait(error)
            raise
        finally:
            await self._answers.aclose()

    def cancel(self) -> None:
        self._running.cancel()

    def fail(self, error: BaseException) -> None:
        """Let the call break: its caller gets an error, its method is cancelled."""
        self._arrived.put_nowait(error)
        self._running.cancel()

    def __aiter__(self) -> StreamingCall:
        return self

    async def __anext__(self) -> Any:
        answer = await self._arrived.get()
        if answer is _END:
            raise StopAsyncIteration
        if isinstance(answer, BaseException):
            raise answer
        return answer
