"""The Experts deployments: a replica is one expert server with its weights, kept in the directory while it lives.

    load one  ->  listen, register  ->  load the others: each takes dispatches once it is there  ->  ready

Where memory is slow to come, a replica that is to relieve others so begins long before it has loaded all.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time

import ray
import torch
from ray import serve

from cluster.deployment_plan import DeploymentPlan
from cluster.directory import ExpertReplica
from cluster.expert_load import ExpertLoadMeter
from cluster.expert_member import ExpertMember
from cluster.frozen_heap import freeze_heap
from cluster.given_up import end_when_given_up
from cluster.holdings import Holdings
from cluster.logs import configure_logs
from cluster.meters import ExpertMeter
from cluster.names import APP, ROUTER, experts_deployment
from cluster.own_location import own_location
from cluster.planned_checkpoint import open_planned_checkpoint
from cluster.registration import Registration
from cluster.spare_processes import SpareProcesses
from cluster.startup_report import StartupReport
from cluster.torch_names import device_of, dtype_of
from cluster.trace_start import start_answer_spans
from cluster.warm_process import was_warm
from cluster.weight_source import weight_source
from experts.holder_source import HolderSource
from experts.server import ExpertServer
from experts.startup import StartupClock, StartupPhases
from experts.unix_socket import make_socket_path
from experts.weights import ExpertWeights
from models.checkpoint import as_stored
from router.placement import ExpertHolder

_LOG = logging.getLogger(__name__)
_GIVEN_AT_S = time.monotonic()
"""When this module was imported: in a process that has all else, when Ray gave it the replica."""
_HEARTBEATS_PER_LEASE = 4
_LONGEST_BEAT_S = 1.0
"""Heartbeats carry the load that placement decides on: a longer pause would make it slow."""


class Experts:
    """A replica of one expert group. Routers reach it over gRPC, at the address the directory tells.

    Args:
        plan: what to run.
        group: which group, 0-based.
    """

    def __init__(self, plan: DeploymentPlan, group: int) -> None:
        self._holdings: Holdings | None = None
        self._reporting = threading.Lock()
        configure_logs(plan.settings.log)
        end_when_given_up()
        self._replica_id = serve.get_replica_context().replica_id.unique_id
        self._clock = StartupClock(_GIVEN_AT_S if was_warm(_GIVEN_AT_S) else None)
        self._clock.imported()
        self._drain_s = plan.settings.experts.drain_s
        self._report = StartupReport(
            replica_id=self._replica_id, app=APP, deployment=experts_deployment(group), directory_deployment=ROUTER
        )
        try:
            with self._report.failures():
                self._start(plan, group)
        except BaseException:
            self._leave()
            raise
        freeze_heap()
        with self._reporting:
            self._report.ready(self._clock.ready())
        self._spares = SpareProcesses(plan.warm_spares)
        self._spares.start()

    def _start(self, plan: DeploymentPlan, group: int) -> None:
        torch.set_num_threads(plan.expert_threads)
        checkpoint = open_planned_checkpoint(plan)
        self._clock.opened()
        device = device_of(plan.devices.experts)
        files = as_stored(checkpoint, plan.settings.model.quantize, device)
        source = weight_source(plan, files, self._replica_id)
        weights = ExpertWeights.load(
            source,
            plan.expert_groups[group],
            dtype_of(plan.dtype),
            progress=self._report.loading,
            device=device,
            quantize=plan.settings.model.quantize,
            spare_bytes=plan.spare_bytes,
            on_held=lambda weights: self._serve(plan, group, weights),
        )
        self._clock.loaded(weights.reading_share, source.fetched_bytes if isinstance(source, HolderSource) else 0)
        self._holdings = Holdings(self._server.replica, self._member.registered, announce=self._announce)
        self._holdings.start()
        self._registration.announce()
        _LOG.info("replica %s serves experts %s at %s", self._replica_id, weights.expert_ids, self._server.address)

    def _serve(self, plan: DeploymentPlan, group: int, weights: ExpertWeights) -> None:
        """Serve the first expert, or say of another one that it is there: the next heartbeat tells the directories."""
        if not hasattr(self, "_registration"):
            self._listen(plan, weights)
            self._register(plan, group, weights)
            return
        self._member.registered = self._member.registered.holding(weights.expert_ids, weights.weight_bytes)

    def _listen(self, plan: DeploymentPlan, weights: ExpertWeights) -> None:
        self._server = ExpertServer(
            weights,
            host=plan.settings.experts.host or ray.util.get_node_ip_address(),
            unix_path=make_socket_path(),
            replica_id=self._replica_id,
            on_first_dispatch=self._report_first_dispatch,
            identity=plan.settings.experts.identity(),
            trace=start_answer_spans(plan.settings.trace, "experts", self._replica_id),
        )
        self._server.start()
        self._meter = ExpertMeter(self._server.replica.batcher)
        self._clock.serving()

    def _register(self, plan: DeploymentPlan, group: int, weights: ExpertWeights) -> None:
        replica = ExpertReplica(
            holder=ExpertHolder(
                replica_id=self._replica_id,
                address=self._server.address,
                unix_address=self._server.unix_address,
                host=socket.gethostname(),
                location=own_location(plan.settings.kubernetes.domains),
                expert_ids=weights.expert_ids,
            ),
            group=experts_deployment(group),
            home_ids=tuple(sorted(plan.expert_groups[group])),
            weight_bytes=weights.weight_bytes,
            pid=os.getpid(),
            registered_at_s=time.time(),
            node_id=ray.get_runtime_context().get_node_id(),
        )
        meter = ExpertLoadMeter(
            self._server.replica,
            group=replica.group,
            host=replica.holder.location.machine,
            spare_bytes=lambda: weights.spare_bytes or 0,
        )
        self._member = ExpertMember(replica, report=meter.report, on_wanted=self._want)
        self._registration = Registration(
            self._member,
            app=APP,
            deployment=ROUTER,
            period_s=min(plan.settings.experts.lease_s / _HEARTBEATS_PER_LEASE, _LONGEST_BEAT_S),
        )
        self._registration.start()

    def _want(self, expert_ids: frozenset[int]) -> None:
        """Hold these experts; while it still loads those of its group, nothing else is asked of a replica."""
        if self._holdings is not None:
            self._holdings.want(expert_ids)

    def _announce(self, replica: ExpertReplica) -> None:
        """Tell the directories what is held now; blocks for seconds at most."""
        self._member.registered = replica
        self._registration.announce()

    def _report_first_dispatch(self) -> None:
        """Complete the report: called in the thread that computes, so another one tells the directory."""
        phases = self._clock.dispatched()
        _LOG.info("replica %s computes: %s", self._replica_id, phases.described())
        if phases.ready_s is not None:
            threading.Thread(target=self._report_all, args=(phases,), daemon=True).start()

    def _report_all(self, phases: StartupPhases) -> None:
        with self._reporting:  # after what was known without the first dispatch
            self._report.ready(phases)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Ray Serve what ExpertsPolicy wants to know."""
        return self._meter.stats(time.monotonic())

    def __del__(self) -> None:
        """Leave the directory, answer what was accepted, end: Ray Serve calls this when the replica is stopped."""
        if hasattr(self, "_spares"):
            self._spares.stop()
        self._leave()

    def _leave(self) -> None:
        if hasattr(self, "_registration"):
            self._registration.stop()
        if self._holdings is not None:
            self._holdings.stop()
        if hasattr(self, "_server"):
            self._server.stop(self._drain_s)
