"""The Router and LongRouter deployments: a replica is one engine, its weights and KV cache, its streams to experts.

Or, with `experts.in_router`, the experts themselves.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import ray
import torch
from ray import serve

from cluster.carrier import Packed
from cluster.carrier_sender import CarrierSender
from cluster.deployment_plan import DeploymentPlan
from cluster.directory import Follower
from cluster.directory_actor import DirectoryOverview
from cluster.frozen_heap import freeze_heap
from cluster.given_up import end_when_given_up
from cluster.gpu_room import check_room, workspace_bytes
from cluster.logs import configure_logs
from cluster.meters import RateMeter
from cluster.names import APP, LONG_ROUTER, ROUTER
from cluster.own_location import own_location
from cluster.placement_feed import PlacementFeed
from cluster.placement_info import placement_info
from cluster.planned_checkpoint import open_planned_checkpoint
from cluster.router_client import PlacementInfo, RouterLoad
from cluster.router_model import load_router_model
from cluster.startup_report import StartupReport
from cluster.torch_names import device_of
from cluster.trace_start import start_tracing
from protos.errors import ReplicaUnavailable, ServingError
from router.context_shards.shards import ContextShards
from router.engine import Engine
from router.kv_cache.layout import ELEMENT_BYTES
from router.limits import EngineLimits
from router.request import GenerationRequest
from router.step_watch import StepWatch
from router.transport.grpc import GrpcTransport
from router.transport.timeouts import DispatchTimeouts

_LOG = logging.getLogger(__name__)
_WAIT_STEP_S = 0.5


class Router:
    """A router replica; its constructor returns once every expert can be reached.

    Args:
        plan: what to run.
    """

    def __init__(self, plan: DeploymentPlan) -> None:
        configure_logs(plan.settings.log)
        end_when_given_up()
        replica = serve.get_replica_context().replica_id
        self._replica_id, self._deployment = replica.unique_id, replica.deployment_id.name
        self._report = StartupReport(
            replica_id=self._replica_id, app=APP, deployment=self._deployment, directory_deployment=ROUTER
        )
        with self._report.failures():
            self._start(plan)
        freeze_heap()
        self._report.ready()

    def _start(self, plan: DeploymentPlan) -> None:
        pool = plan.pools[self._deployment]
        torch.set_num_threads(pool.threads)
        settings = plan.settings.router
        self._streams = None if plan.experts_in_router else self._to_experts(plan)
        self._shards = None
        if pool.engine_limits.on_shards:
            self._shards = ContextShards(
                router_id=self._replica_id,
                fingerprint=plan.fingerprint,
                segment_tokens=plan.segment_tokens,
                patience_s=settings.patience_s,
                identity=plan.settings.experts.identity(),
            )
        self._feed = PlacementFeed(
            self._streams.update if self._streams else lambda placement: None,
            self._shards.update if self._shards else lambda shards: None,
            Follower(
                router_id=self._replica_id,
                deployment=self._deployment,
                location=own_location(plan.settings.kubernetes.domains),
                node_id=ray.get_runtime_context().get_node_id(),
            ),
        )
        self._feed.start()
        checkpoint = open_planned_checkpoint(plan)
        model = load_router_model(plan, checkpoint, self._report.loading)
        if plan.devices.router == "cuda":
            _check_card(plan, pool.engine_limits)
        if self._streams is not None:
            self._wait_for_experts(self._streams, range(plan.config.num_experts))
        while self._shards is not None and not self._shards.wait_ready(1, _WAIT_STEP_S):
            self._report.waiting("a context shard")
        # Of weights that were exchanged for others of the same shapes, kept pages would be wrong.
        name = f"{plan.fingerprint} {checkpoint.changed} {plan.settings.model.quantize}"
        transport = self._streams or model.local_transport()
        self._engine = Engine(model.decoder, transport, pool.engine_limits, self._shards, model=name)
        self._engine.start()
        self._feed.serving()
        self._watch = StepWatch(self._engine, settings.stuck_after_s)
        self._sender = CarrierSender(
            self._engine,
            self._watch,
            self._replica_id,
            tracing=start_tracing(plan.settings.trace, "router"),
            times=lambda: self._streams.health().times if self._streams else None,
        )
        self._prompt_meter = RateMeter()
        _LOG.info("router %s serves from process %d", self._replica_id, os.getpid())

    def _to_experts(self, plan: DeploymentPlan) -> GrpcTransport:
        settings = plan.settings.router
        return GrpcTransport(
            router_id=self._replica_id,
            fingerprint=plan.fingerprint,
            stands_back=self._deployment == LONG_ROUTER,
            timeouts=DispatchTimeouts(answer_s=settings.answer_timeout_s, patience_s=settings.patience_s),
            device=device_of(plan.devices.router),
            identity=plan.settings.experts.identity(),
        )

    def _wait_for_experts(self, streams: GrpcTransport, experts: range) -> None:
        """Return when every expert can be reached. No deadline: what keeps one from starting is its own report."""
        while not streams.wait_ready(experts, _WAIT_STEP_S):
            missing = streams.placement.missing(experts)
            self._report.waiting(f"experts {missing}" if missing else "streams to the experts")

    async def generate(
        self, request: GenerationRequest, door_id: str, is_careful: bool
    ) -> AsyncGenerator[str | ServingError, None]:
        """Run a sequence; see CarrierSender. A refusal is the only item. RouterChoice was careful if told to."""
        try:
            async with aclosing(self._sender.generate(request, door_id)) as accepted:
                async for name in accepted:
                    yield name
        except ServingError as error:
            yield error  # raised, it would arrive wrapped in a traceback of Ray's

    async def carry(self, replica_id: str, door_id: str) -> AsyncGenerator[Packed, None]:
        """Tell a front door of its sequences; see CarrierSender.

        Raises:
            ReplicaUnavailable: RouterChoice found the router named no more, and sent the call here.
        """
        if replica_id != self._replica_id:
            raise ReplicaUnavailable(
                f"expected router {replica_id} to serve, found it gone or about to go; send its sequences to another"
            )
        async with aclosing(self._sender.carry(door_id)) as batches:
            async for batch in batches:
                yield batch

    async def load(self) -> RouterLoad:
        """Tell how busy this replica is."""
        return RouterLoad(
            replica_id=self._replica_id,
            load=self._engine.load(),
            pid=os.getpid(),
            dispatches=self._streams.health() if self._streams else None,
        )

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Ray Serve what RouterPolicy and ContextPolicy want to know."""
        load = self._engine.load()
        return {
            "kv_share": load.kv_used_bytes / max(load.kv_total_bytes, 1),
            "slot_share": (load.running + load.waiting) / load.slots,
            "slots": load.slots,
            "queued_prompt_tokens": load.queued_prompt_tokens,
            "prompt_tokens_per_s": self._prompt_meter.read(load.prompt_tokens - load.cached_tokens, time.monotonic()),
            "prefill_tokens_per_s": load.prefill_tokens_per_s,
            "context_wanted_tokens": load.context_wanted_tokens,
        }

    async def describe(self) -> PlacementInfo:
        """Tell where the experts were when the directory was heard last: front doors ask it themselves first."""
        known = DirectoryOverview(snapshot=self._feed.snapshot, reports={}, events=())
        return placement_info(known, is_current=False)

    async def check_health(self) -> None:
        """Raise if the engine is stuck or has ended: Ray Serve replaces this replica then."""
        self._watch.check(time.monotonic())

    def __del__(self) -> None:
        """End what is running: Ray Serve calls this when the replica is stopped, its requests done."""
        if hasattr(self, "_engine"):
            self._engine.stop()
        if hasattr(self, "_feed"):
            self._feed.stop()
            if self._streams is not None:
                self._streams.close()
            if self._shards is not None:
                self._shards.close()


def _check_card(plan: DeploymentPlan, limits: EngineLimits) -> None:
    """Check that what the plan reckoned with is there, now that weights are loaded.

    Raises:
        NotEnoughMemory: it is not.
    """
    torch.cuda.empty_cache()  # what loading needed for a moment
    free_bytes, _ = torch.cuda.mem_get_info(device_of(plan.devices.router))
    workspace = workspace_bytes(
        plan.config,
        step_tokens=limits.step_tokens,
        slots=limits.slots,
        item_bytes=ELEMENT_BYTES[plan.dtype],
        in_router=plan.experts_in_router,
    )
    check_room(free_bytes, limits.kv_bytes, workspace)
