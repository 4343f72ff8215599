"""grpc.health.v1 for the front door: serving means that a router answers, or that the first request starts one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from grpc_health.v1 import health_pb2

from cluster.service import InferenceService
from protos.errors import NotFound, ServingError
from protos.inference.v1 import inference_pb2

_SERVICES = ("", inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name)
_WATCH_PERIOD_S = 1.0

Status = health_pb2.HealthCheckResponse


class GrpcHealth:
    """Answers health checks.

    Args:
        service: asked for its routers.
    """

    def __init__(self, service: InferenceService) -> None:
        self._service = service

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
        """Tell the status now and whenever it changes."""
        known = None
        while True:
            is_ours = request.service in _SERVICES
            status = await self._status() if is_ours else Status(status=Status.SERVICE_UNKNOWN)
            if status != known:
                yield status
            known = status
            await asyncio.sleep(_WATCH_PERIOD_S)

    async def _status(self) -> health_pb2.HealthCheckResponse:
        try:
            await self._service.load()
        except ServingError:
            return Status(status=Status.NOT_SERVING)
        return Status(status=Status.SERVING)
