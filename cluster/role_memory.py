"""Whether each replica fits the machine it has to itself, where replicas run by role. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cluster.byte_text import format_bytes
from cluster.gpus import Gpus
from cluster.machine import Machine
from cluster.planner.assumptions import PROCESS_BYTES, RAY_BYTES
from cluster.roles import CONTEXT_ROLE, EXPERTS_ROLE, ROUTER_ROLE
from cluster.weight_bytes import WeightBytes
from protos.errors import BadConfig, NotEnoughMemory

if TYPE_CHECKING:
    from cluster.deployment_plan import DeploymentPlan


def all_gpus(machines: Mapping[str, Machine], num_routers: int, num_expert_replicas: int) -> Gpus:
    """Return the GPUs of all nodes that there will be: those of one node, as often as replicas have such a node.

    Args:
        machines: a node's of each role that there is.
        num_routers: most there may be.
        num_expert_replicas: most there may be, of all groups together.
    """
    cards = machines[ROUTER_ROLE].gpus.cards[:1] * num_routers
    if EXPERTS_ROLE in machines:
        cards += machines[EXPERTS_ROLE].gpus.cards[:1] * num_expert_replicas
    problems = [machine.gpus.problem for machine in machines.values() if machine.gpus.problem]
    return Gpus(cards, problems[0] if problems else "")


def replica_bytes(plan: DeploymentPlan, weights: WeightBytes) -> dict[str, int]:
    """Return the main memory that a replica's node needs, by role; with Ray's own processes.

    Args:
        plan: what will run.
        weights: of its model.
    """
    process, ray = int(PROCESS_BYTES.value), int(RAY_BYTES.value)
    limits = [pool.engine_limits for pool in plan.pools.values()]
    is_cpu = plan.devices.router == "cpu"
    router = max(each.kv_bytes * is_cpu + each.host_kv_bytes for each in limits) + process + ray
    if is_cpu:
        router += weights.router("cpu") + (weights.experts("cpu") if plan.experts_in_router else 0)
    needed = {ROUTER_ROLE: router}
    if plan.expert_groups:
        largest = max(map(len, plan.expert_groups))
        group = weights.experts("cpu") * largest // plan.config.num_experts if plan.devices.experts == "cpu" else 0
        needed[EXPERTS_ROLE] = group + process * (1 + plan.warm_spares) + ray
    if plan.segment_tokens:
        needed[CONTEXT_ROLE] = plan.context_bytes + process + ray
    return needed


def check_machines(plan: DeploymentPlan, weights: WeightBytes, machines: Mapping[str, Machine]) -> None:
    """Check that every replica fits a node of its role.

    Args:
        plan: what will run.
        weights: of its model.
        machines: a node's of each role that there is.

    Raises:
        NotEnoughMemory: one does not.
        BadConfig: nothing says how large a context shard is.
    """
    if plan.segment_tokens and plan.settings.context.kv_bytes is None:
        raise BadConfig(
            "context.kv_bytes: expected bytes where a shard has a node to itself, found none; set them, or let `herd "
            "plan` tell them"
        )
    for role, needed in replica_bytes(plan, weights).items():
        if needed > machines[role].free_bytes:
            raise NotEnoughMemory(
                f"expected nodes with the resource {role} to have {format_bytes(needed)} of memory, found one of "
                f"{format_bytes(machines[role].free_bytes)}; give them more, or lower the KV cache or raise "
                "experts.groups"
            )
