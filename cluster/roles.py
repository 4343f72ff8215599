"""What a replica does, as a resource of Ray's: where nodes offer roles, each replica runs on a node of its own role.

A node offers one of its role's resource and a replica takes it, so a node has one replica, and Ray's autoscaler knows
which kind of node is missing. helm/ makes such nodes; on one machine nobody asks for roles. Where copies of an expert
must be on different machines, whoever makes the nodes also has them offer one expert group each (decisions/0010).
"""

from __future__ import annotations

from cluster.names import CONTEXT, FRONT_DOOR, group_of, is_router

FRONT_DOOR_ROLE = "herd_front_door"
ROUTER_ROLE = "herd_router"
EXPERTS_ROLE = "herd_experts"
CONTEXT_ROLE = "herd_context_shard"


def role_of(deployment: str) -> str:
    """Return the resource that a deployment's replicas take one of, where there are roles."""
    if is_router(deployment):
        return ROUTER_ROLE
    return {FRONT_DOOR: FRONT_DOOR_ROLE, CONTEXT: CONTEXT_ROLE}.get(deployment, EXPERTS_ROLE)


def group_role(deployment: str) -> str:
    """Return the resource that the replicas of an expert group take one of, too, where nodes offer groups."""
    return f"{EXPERTS_ROLE}_{group_of(deployment)}"
