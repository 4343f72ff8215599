"""What a process may put on its GPU besides what it must: the front door's limits are made from it, before any starts.

    card = margin + process + weights + workspace + room

Every router has the room of the card with least, so that all have one length of context, and front doors know it. After
loading, a router looks at its own card, and refuses to start where the reckoning was wrong.
"""

from __future__ import annotations

from cluster.byte_text import format_bytes
from cluster.gpus import Gpus
from cluster.planner.assumptions import GPU_PROCESS_BYTES, MARGIN
from cluster.planner.workspace import expert_workspace, router_workspace
from models.config import ModelConfig
from protos.errors import NotEnoughMemory


def usable_bytes(gpus: Gpus) -> int:
    """Return what a process may fill of the card with least: what is free, less a margin and what a process takes."""
    return min(card.free_bytes - int(MARGIN.value * card.memory_bytes) for card in gpus.cards) - int(
        GPU_PROCESS_BYTES.value
    )


def workspace_bytes(config: ModelConfig, *, step_tokens: int, slots: int, item_bytes: int, in_router: bool) -> int:
    """Return what a router computes a step in.

    Args:
        config: the model's.
        step_tokens: most tokens of a step.
        slots: most sequences that generate at once.
        item_bytes: of one value of what it computes in.
        in_router: whether it runs the experts, too.
    """
    sizes = {"step_tokens": step_tokens, "item_bytes": item_bytes}
    experts = expert_workspace(config, **sizes) if in_router and config.is_moe else 0
    return router_workspace(config, slots=slots, **sizes) + experts


def check_room(free_bytes: int, kv_bytes: int, workspace: int) -> None:
    """Check a card that weights are on already.

    Args:
        free_bytes: that it has left.
        kv_bytes: of the KV cache that is planned.
        workspace: see `workspace_bytes`.

    Raises:
        NotEnoughMemory: the cache would not fit, or would leave nothing to compute in.
    """
    if kv_bytes + workspace > free_bytes:
        raise NotEnoughMemory(
            f"expected {format_bytes(kv_bytes)} of KV cache and {format_bytes(workspace)} of workspace to fit the GPU "
            f"beside the weights, found {format_bytes(free_bytes)} free; set router.kv_bytes (long.kv_bytes for long "
            f"requests) to at most {max(free_bytes - workspace, 0)}, or end what else is on the card"
        )
