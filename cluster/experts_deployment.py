"""The Experts deployments: a replica is one expert server with its weights, kept in the directory while it lives."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import time
from pathlib import Path

import ray
import torch
from ray import serve

from cluster.directory import ExpertReplica
from cluster.meters import ExpertMeter, MeteredExperts
from cluster.names import APP, ROUTER, experts_deployment
from cluster.plan import DeploymentPlan
from cluster.planned_model import open_planned_checkpoint
from cluster.registration import Registration
from cluster.startup_report import StartupReport
from experts.server import ExpertServer
from experts.weights import ExpertWeights
from router.placement import ExpertHolder

_LOG = logging.getLogger(__name__)
_HEARTBEATS_PER_LEASE = 4


class Experts:
    """A replica of one expert group. Routers reach it over gRPC, at the address the directory tells.

    Args:
        plan: what to run.
        group: which group, 0-based.
    """

    def __init__(self, plan: DeploymentPlan, group: int) -> None:
        self._replica_id = serve.get_replica_context().replica_id.unique_id
        self._drain_s = plan.settings.experts.drain_s
        self._report = StartupReport(
            replica_id=self._replica_id, app=APP, deployment=experts_deployment(group), directory_deployment=ROUTER
        )
        with self._report.failures():
            self._start(plan, group)
        self._report.ready()

    def _start(self, plan: DeploymentPlan, group: int) -> None:
        torch.set_num_threads(plan.expert_threads)
        weights = ExpertWeights.load(
            open_planned_checkpoint(plan),
            plan.expert_groups[group],
            plan.dtype,
            progress=self._report.loading,
            quantize=plan.settings.model.quantize,
        )
        metered = MeteredExperts(weights)
        self._meter = ExpertMeter(metered)
        self._server = ExpertServer(
            metered,
            host=plan.settings.experts.host or ray.util.get_node_ip_address(),
            unix_path=Path(tempfile.mkdtemp(prefix="experts-")) / "socket",
            replica_id=self._replica_id,
        )
        self._server.start()
        replica = ExpertReplica(
            holder=ExpertHolder(
                replica_id=self._replica_id,
                address=self._server.address,
                unix_address=self._server.unix_address,
                host=socket.gethostname(),
                expert_ids=weights.expert_ids,
            ),
            group=experts_deployment(group),
            weight_bytes=weights.weight_bytes,
            pid=os.getpid(),
        )
        period_s = plan.settings.experts.lease_s / _HEARTBEATS_PER_LEASE
        self._registration = Registration(replica, app=APP, deployment=ROUTER, period_s=period_s)
        self._registration.start()
        _LOG.info("replica %s serves experts %s at %s", self._replica_id, weights.expert_ids, self._server.address)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Ray Serve what ExpertsPolicy wants to know."""
        return self._meter.stats(self._server.replica.batcher.queued_tokens, time.monotonic())

    def __del__(self) -> None:
        """Leave the directory, answer what was accepted, end: Ray Serve calls this when the replica is stopped."""
        if hasattr(self, "_registration"):
            self._registration.stop()
        if hasattr(self, "_server"):
            self._server.stop(self._drain_s)
