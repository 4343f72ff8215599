"""A Service of Kubernetes: leads new connections to pods that are ready; those that are open stay where they are.

Ready is a pod whose probe succeeded last and that is not being deleted; where there is none, one that is being deleted
while its probe succeeds. What changes is heard of a moment later. With nobody to lead it to, a connection is refused.

Source: kubernetes.io "EndpointSlices", conditions ready, serving and terminating; "Virtual IPs", traffic to terminating
endpoints.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass

from benchmarks.pods.pod import Pod, succeeds
from benchmarks.pods.rendered import Probe

_HEARD_AFTER_S = 1.0
"""Seconds from a change to its effect: EndpointSlices pass through the API server to each node."""
_PIECE = 65536


@dataclass(kw_only=True, slots=True)
class _Endpoint:
    pod: Pod
    is_terminating: bool = False
    has_succeeded: bool = False
    num_failures: int = 0
    probing: asyncio.Task[None] | None = None


class Service:
    """Context manager. Its methods are for any thread.

    Args:
        ports: of pods; the same ones are listened on here.
        probe: asked of pods.
        http_port: where it is.
    """

    def __init__(self, ports: list[int], probe: Probe, http_port: int) -> None:
        self._ports = ports
        self._probe = probe
        self._http_port = http_port
        self._endpoints: dict[str, _Endpoint] = {}
        self._led: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="service", daemon=True)

    def add(self, pod: Pod) -> None:
        """Probe a pod from now on, and lead connections to it while it is ready."""
        self._call(self._add(pod))

    def terminate(self, pod: Pod) -> None:
        """Take note that a pod is being deleted."""
        self._loop.call_soon_threadsafe(self._terminate, pod.name)

    def remove(self, pod: Pod) -> None:
        """Forget a pod that is gone."""
        self._loop.call_soon_threadsafe(self._endpoints.pop, pod.name, None)
        self._loop.call_soon_threadsafe(self._publish)

    @property
    def led(self) -> list[str]:
        """Return the addresses that new connections are led to."""
        return self._led

    def __enter__(self) -> Service:
        self._thread.start()
        for port in self._ports:
            self._call(self._listen(port))
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._cancel())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _call(self, made: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(made, self._loop).result(10)

    async def _add(self, pod: Pod) -> None:
        endpoint = self._endpoints[pod.name] = _Endpoint(pod=pod)
        endpoint.probing = asyncio.create_task(self._follow(pod.name))

    async def _cancel(self) -> None:
        for each in asyncio.all_tasks() - {asyncio.current_task()}:
            each.cancel()

    async def _listen(self, port: int) -> None:
        await asyncio.start_server(lambda reader, writer: self._lead(port, reader, writer), "0.0.0.0", port)

    def _terminate(self, name: str) -> None:
        if name in self._endpoints:
            self._endpoints[name].is_terminating = True
            self._publish()

    async def _follow(self, name: str) -> None:
        """Probe a pod until it is forgotten."""
        while (endpoint := self._endpoints.get(name)) is not None:
            began = time.monotonic()
            url = f"http://{endpoint.pod.address}:{self._http_port}{self._probe.path}"
            is_well = await asyncio.to_thread(succeeds, url, self._probe.timeout_s)
            endpoint.num_failures = 0 if is_well else endpoint.num_failures + 1
            was = endpoint.has_succeeded
            endpoint.has_succeeded = is_well or (was and endpoint.num_failures < self._probe.num_failures)
            if endpoint.has_succeeded != was:
                self._publish()
            await asyncio.sleep(max(self._probe.period_s - (time.monotonic() - began), 0))

    def _publish(self) -> None:
        serving = [each for each in self._endpoints.values() if each.has_succeeded]
        chosen = [each.pod.address for each in serving if not each.is_terminating]
        self._loop.call_later(_HEARD_AFTER_S, self._hear, chosen or [each.pod.address for each in serving])

    def _hear(self, addresses: list[str]) -> None:
        self._led = addresses

    async def _lead(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection(random.choice(self._led), port)
        except (OSError, IndexError):
            writer.transport.abort()
            return
        await asyncio.gather(_carry(reader, there[1]), _carry(there[0], writer))


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
        writer.write_eof()
        return
    writer.transport.abort()
