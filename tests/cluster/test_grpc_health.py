import asyncio

import pytest
from grpc_health.v1 import health_pb2

from cluster.grpc.health import GrpcHealth
from cluster.service import InferenceService
from protos.errors import NoReplica, NotFound

Status = health_pb2.HealthCheckResponse


class Routers:
    """Routers that answer, or not."""

    def __init__(self, loads: tuple | Exception) -> None:
        self.loads = loads

    async def load(self) -> tuple:
        if isinstance(self.loads, Exception):
            raise self.loads
        return self.loads


NONE = NoReplica("none answers")


def health(model, loads: tuple | Exception = NONE) -> GrpcHealth:
    return GrpcHealth(InferenceService(model, Routers(loads)))


def ask(name: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=name)


@pytest.mark.parametrize("name", ["", "herd.inference.v1.InferenceService"])
def test_it_serves_when_a_router_answers(id_model, name):
    assert asyncio.run(health(id_model, ("load",)).check(ask(name))).status == Status.SERVING
    assert asyncio.run(health(id_model).check(ask(name))).status == Status.NOT_SERVING


def test_it_serves_where_the_first_request_starts_a_router(id_model):
    assert asyncio.run(health(id_model, ()).check(ask(""))).status == Status.SERVING


def test_a_service_that_is_not_ours_is_not_found(id_model):
    with pytest.raises(NotFound):
        asyncio.run(health(id_model).check(ask("other")))


def test_watching_a_service_that_is_not_ours_says_so(id_model):
    async def first() -> int:
        return (await anext(health(id_model).watch(ask("other")))).status

    assert asyncio.run(first()) == Status.SERVICE_UNKNOWN


def test_watching_tells_of_a_change(id_model):
    async def scenario() -> list[int]:
        routers = Routers(("load",))
        watching = GrpcHealth(InferenceService(id_model, routers)).watch(ask(""))
        first = await anext(watching)
        routers.loads = NONE
        return [first.status, (await anext(watching)).status]

    assert asyncio.run(scenario()) == [Status.SERVING, Status.NOT_SERVING]
