"""The gauges that tell of routers and expert replicas: which value each takes from where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from cluster.machine_loss import machines_by_expert
from cluster.names import is_experts
from cluster.replica_roster import STATES
from cluster.router_client import ExpertReplicaInfo, PlacementInfo, RouterLoad
from router.transport.health import TransportHealth

Samples = dict[tuple[str, ...], float]
"""A gauge's values by its labels' values."""

_OF_ROUTER: dict[str, Callable[[RouterLoad], float]] = {
    "herd_running_sequences": lambda each: each.load.running,
    "herd_waiting_sequences": lambda each: each.load.waiting,
    "herd_slots": lambda each: each.load.slots,
    "herd_generated_tokens": lambda each: each.load.generated_tokens,
    "herd_queued_prompt_tokens": lambda each: each.load.queued_prompt_tokens,
    "herd_kv_used_bytes": lambda each: each.load.kv_used_bytes,
    "herd_kv_total_bytes": lambda each: each.load.kv_total_bytes,
    "herd_kv_cached_bytes": lambda each: each.load.kv_cached_bytes,
    "herd_kv_host_bytes": lambda each: each.load.kv_tiers.host_bytes,
    "herd_kv_disk_bytes": lambda each: each.load.kv_tiers.disk_bytes,
    "herd_kv_restored_host_bytes": lambda each: each.load.kv_tiers.restored_host_bytes,
    "herd_kv_restored_disk_bytes": lambda each: each.load.kv_tiers.restored_disk_bytes,
    "herd_kv_restore_host_seconds": lambda each: each.load.kv_tiers.restore_host_s,
    "herd_kv_restore_disk_seconds": lambda each: each.load.kv_tiers.restore_disk_s,
    "herd_kv_damaged_pages": lambda each: each.load.kv_tiers.num_damaged,
    "herd_prefix_queried_tokens": lambda each: each.load.prompt_tokens,
    "herd_prefix_cached_tokens": lambda each: each.load.cached_tokens,
    "herd_prefix_hit_ratio": lambda each: each.load.cached_tokens / max(each.load.prompt_tokens, 1),
    "herd_preemptions": lambda each: each.load.preemptions,
    "herd_context_repaired_tokens": lambda each: each.load.repaired_tokens,
    "herd_context_free_tokens": lambda each: each.load.context_free_tokens or 0,
    "herd_context_wanted_tokens": lambda each: each.load.context_wanted_tokens,
}
_OF_DISPATCHES: dict[str, Callable[[TransportHealth], float]] = {
    "herd_dispatch_shares": lambda each: each.counts.shares,
    "herd_dispatch_hedges": lambda each: each.counts.hedges,
    "herd_dispatch_resends": lambda each: each.counts.resends,
    "herd_dispatch_probes": lambda each: each.counts.probes,
    "herd_dispatch_answers": lambda each: each.times.answers,
    "herd_ejections": lambda each: each.ejections,
    "herd_ejected_replicas": lambda each: len(each.ejected),
}
_OF_EXPERT_REPLICA: dict[str, Callable[[ExpertReplicaInfo], float]] = {
    "herd_expert_queue_seconds": lambda each: each.queue_s,
    "herd_expert_compute_seconds": lambda each: each.compute_s,
    "herd_expert_spare_bytes": lambda each: each.spare_bytes,
}


def cluster_gauges(
    loads: Sequence[RouterLoad], placement: PlacementInfo | None, num_experts: int
) -> dict[str, Samples]:
    """Return every such gauge's samples; none where nothing is known.

    Args:
        loads: the routers' loads.
        placement: where the experts are; None: not known, or there are none.
        num_experts: logical experts of the model.
    """
    replicas = placement.expert_replicas if placement else ()
    gauges: dict[str, Samples] = {
        name: {(each.replica_id,): value(each) for each in loads} for name, value in _OF_ROUTER.items()
    }
    for name, count in _OF_DISPATCHES.items():
        gauges[name] = {(each.replica_id,): count(each.dispatches) for each in loads if each.dispatches is not None}
    gauges["herd_dispatch_seconds"] = {
        (each.replica_id, part): seconds
        for each in loads
        if each.dispatches is not None
        for part, seconds in each.dispatches.times.parts().items()
    }
    for name, measure in _OF_EXPERT_REPLICA.items():
        gauges[name] = {(each.replica_id,): measure(each) for each in replicas}
    gauges["herd_kv_pages"] = {sample: value for each in loads for sample, value in _pages(each)}
    machines = machines_by_expert(replicas)
    # One that nobody holds is 0, and not nothing: that is when somebody has to look.
    everyone = range(num_experts if placement and _has_expert_replicas(placement) else 0)
    gauges["herd_expert_copies"] = {(str(expert),): len(machines.get(expert, ())) for expert in everyone}
    gauges["herd_expert_machines"] = {(str(expert),): len(set(machines.get(expert, ()))) for expert in everyone}
    roster = Counter((each.deployment, each.state) for each in (placement.roster if placement else ()))
    # Every state of a deployment that there is: nobody draining is 0, and not nothing.
    gauges["herd_replicas"] = {
        (deployment, state): roster[deployment, state]
        for deployment in sorted({deployment for deployment, _ in roster})
        for state in STATES
    }
    gauges |= _of_departures(placement)
    # As many samples as there are copies, busy or not: a series must not come and go with the load.
    gauges["herd_expert_tokens_per_second"] = {
        (str(expert), each.replica_id): each.tokens_per_s.get(expert, 0.0)
        for each in replicas
        for expert in each.expert_ids
    }
    return gauges


def _has_expert_replicas(placement: PlacementInfo) -> bool:
    """Tell whether experts have processes of their own, though perhaps none that serves."""
    return bool(placement.expert_replicas) or any(is_experts(each.deployment) for each in placement.roster)


def _pages(router: RouterLoad) -> Iterator[tuple[tuple[str, ...], float]]:
    for layers, pages in (("global", router.load.global_pages), ("local", router.load.local_pages)):
        for state, count in (("used", pages.used), ("kept", pages.kept), ("free", pages.free)):
            yield (router.replica_id, layers, state), count


def _of_departures(placement: PlacementInfo | None) -> dict[str, Samples]:
    gone = None if placement is None else placement.departures
    if placement is None or gone is None:
        return {"herd_departures": {}, "herd_draining_nodes": {}, "herd_drained_nodes": {}}
    return {
        "herd_departures": {("left",): gone.left, ("lost",): gone.lost},
        "herd_draining_nodes": {(): placement.num_draining_nodes},
        "herd_drained_nodes": {(): gone.drained_nodes},
    }
