"""The Context deployment: a replica is one context shard, kept in the directory while it lives."""

from __future__ import annotations

import logging
import os
import socket

import ray
import torch
from ray import serve

from cluster.context_member import ContextMember
from cluster.deployment_plan import DeploymentPlan
from cluster.directory import ContextReplica
from cluster.frozen_heap import freeze_heap
from cluster.given_up import end_when_given_up
from cluster.logs import configure_logs
from cluster.names import APP, CONTEXT, ROUTER
from cluster.registration import Registration
from cluster.startup_report import StartupReport
from cluster.torch_names import dtype_of
from cluster.trace_start import start_answer_spans
from context.segments import SegmentStore
from context.server import ContextServer
from context.shard import Shard
from router.context_shards.stream import ShardHolder

_LOG = logging.getLogger(__name__)
_BEAT_S = 1.0


class Context:
    """A context shard. Routers reach it over gRPC, at the address the directory tells.

    Args:
        plan: what to run.
    """

    def __init__(self, plan: DeploymentPlan) -> None:
        configure_logs(plan.settings.log)
        end_when_given_up()
        shard_id = serve.get_replica_context().replica_id.unique_id
        report = StartupReport(replica_id=shard_id, app=APP, deployment=CONTEXT, directory_deployment=ROUTER)
        with report.failures():
            self._start(plan, shard_id)
        freeze_heap()
        report.ready()

    def _start(self, plan: DeploymentPlan, shard_id: str) -> None:
        torch.set_num_threads(plan.context_threads)
        settings = plan.settings.context
        dtype = dtype_of(plan.dtype)
        store = SegmentStore(
            plan.config,
            kv_dtype=plan.engine_limits.kv_dtype or plan.dtype,
            kv_bytes=plan.context_bytes,
            dtype=dtype,
            device=torch.device("cpu"),
        )
        shard = Shard(store, fingerprint=plan.fingerprint, dtype=dtype, shard_id=shard_id, lease_s=settings.lease_s)
        self._server = ContextServer(
            shard,
            host=settings.host or ray.util.get_node_ip_address(),
            identity=plan.settings.experts.identity(),
            trace=start_answer_spans(plan.settings.trace, "context", shard_id),
        )
        self._server.start()
        whole_tokens = store.total_tokens // plan.segment_tokens * plan.segment_tokens
        self._usable_tokens = whole_tokens or store.total_tokens
        replica = ContextReplica(
            holder=ShardHolder(shard_id, self._server.address),
            total_tokens=store.total_tokens,
            pid=os.getpid(),
            host=socket.gethostname(),
        )
        self._registration = Registration(ContextMember(replica), app=APP, deployment=ROUTER, period_s=_BEAT_S)
        self._registration.start()
        _LOG.info("context shard %s holds %d tokens at %s", shard_id, store.total_tokens, self._server.address)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Ray Serve what ContextPolicy wants to know."""
        return {"total_tokens": self._usable_tokens}

    def __del__(self) -> None:
        """Leave the directory, end: Ray Serve calls this when the replica is stopped."""
        if hasattr(self, "_registration"):
            self._registration.stop()
        if hasattr(self, "_server"):
            self._server.stop()
