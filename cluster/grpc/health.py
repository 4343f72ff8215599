"""grpc.health.v1 for the front door: serving means that a router answers, or that the first request starts one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from grpc_health.v1 import health_pb2

from cluster.service import InferenceService
from cluster.shared_answer import SharedAnswer
from protos.errors import NotFound, Overloaded, ServingError
from protos.inference.v1 import inference_pb2

_SERVICES = ("", inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name)
_WATCH_PERIOD_S = 1.0
MAX_WATCHES = 1024
"""Most callers that watch at once: it takes no API key."""

Status = health_pb2.HealthCheckResponse
_UNKNOWN = Status(status=Status.SERVICE_UNKNOWN)


class GrpcHealth:
    """Answers health checks.

    Args:
        service: asked for its routers.
    """

    def __init__(self, service: InferenceService) -> None:
        # However many ask, without an API key, routers are asked once at a time.
        self._load = SharedAnswer(service.load)
        self._num_watches = 0

    async def check(self, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:
        """Tell the status now.

        Raises:
            NotFound: a service that is not ours.
        """
        if request.service not in _SERVICES:
            raise NotFound(f"service: expected one of {list(_SERVICES)}, found {request.service!r}; use one of them")
        return await self._status()

    async def watch(
        self, request: health_pb2.HealthCheckRequest
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        """Tell the status now and whenever it changes.

        Raises:
            Overloaded: as many watch as may.
        """
        if self._num_watches >= MAX_WATCHES:
            raise Overloaded(f"expected at most {MAX_WATCHES} callers to watch, found more; use Check")
        self._num_watches += 1
        try:
            known = None
            while True:
                is_ours = request.service in _SERVICES
                status = await self._status(_WATCH_PERIOD_S / 2) if is_ours else _UNKNOWN
                if status != known:
                    yield status
                known = status
                await asyncio.sleep(_WATCH_PERIOD_S)
        finally:
            self._num_watches -= 1

    async def _status(self, max_age_s: float = 0.0) -> health_pb2.HealthCheckResponse:
        try:
            await self._load.get(max_age_s)
        except ServingError:
            return Status(status=Status.NOT_SERVING)
        return Status(status=Status.SERVING)
