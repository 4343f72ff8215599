"""The FrontDoor deployment: the ingress of both APIs. What they do is in `service.py`, `grpc/api.py` and `openai/`."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fastapi import FastAPI
from grpc_health.v1 import health_pb2
from ray import serve
from ray.serve.grpc_util import RayServegRPCContext
from ray.serve.handle import DeploymentHandle

from cluster.grpc.api import GrpcApi
from cluster.grpc.health import GrpcHealth
from cluster.grpc.status import answer_once, answer_stream
from cluster.openai.app import build_app
from cluster.plan import DeploymentPlan
from cluster.planned_model import load_planned_model
from cluster.serve_router_client import ServeRouterClient
from cluster.service import InferenceService
from protos.inference.v1 import inference_pb2 as pb


class _FrontDoor:
    """A front door replica. Ray Serve's proxy routes a gRPC call to the method of its name.

    Args:
        plan: what is served.
        router: the Router deployment.
        experts: the Experts deployments; named so that they are deployed, never called.
    """

    def __init__(self, plan: DeploymentPlan, router: DeploymentHandle, *experts: DeploymentHandle) -> None:
        self._client = ServeRouterClient(router)
        self._service = InferenceService(load_planned_model(plan), self._client, plan.settings.limits)
        self._api = GrpcApi(self._service)
        self._health = GrpcHealth(self._service)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self._service)

    async def drain(self) -> None:
        self._client.drain()

    async def Generate(
        self, request: pb.GenerateRequest, grpc_context: RayServegRPCContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        async for response in answer_stream(self._api.generate(request), grpc_context, pb.GenerateResponse):
            yield response

    async def Tokenize(self, request: pb.TokenizeRequest, grpc_context: RayServegRPCContext) -> pb.TokenizeResponse:
        return await answer_once(self._api.tokenize(request), grpc_context, pb.TokenizeResponse)

    async def ListModels(
        self, request: pb.ListModelsRequest, grpc_context: RayServegRPCContext
    ) -> pb.ListModelsResponse:
        return await answer_once(self._api.list_models(), grpc_context, pb.ListModelsResponse)

    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, grpc_context: RayServegRPCContext
    ) -> pb.GetServerInfoResponse:
        return await answer_once(self._api.get_server_info(), grpc_context, pb.GetServerInfoResponse)

    async def GetLoad(self, request: pb.GetLoadRequest, grpc_context: RayServegRPCContext) -> pb.GetLoadResponse:
        return await answer_once(self._api.get_load(), grpc_context, pb.GetLoadResponse)

    async def Check(
        self, request: health_pb2.HealthCheckRequest, grpc_context: RayServegRPCContext
    ) -> health_pb2.HealthCheckResponse:
        return await answer_once(self._health.check(request), grpc_context, health_pb2.HealthCheckResponse)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, grpc_context: RayServegRPCContext
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        responses = answer_stream(self._health.watch(request), grpc_context, health_pb2.HealthCheckResponse)
        async for response in responses:
            yield response


FrontDoor = serve.ingress()(_FrontDoor)
"""The class Ray Serve deploys: `_FrontDoor` with the HTTP application it builds."""
