"""A cluster worth looking at, made up: routers, expert replicas in groups, copies, ejections, events, hostile names."""

from __future__ import annotations

import time

from cluster.events import ClusterEvent
from cluster.router_client import ExpertReplicaInfo, PlacementInfo, RouterLoad
from router.request import EngineLoad
from router.transport.evidence import DispatchCounts
from router.transport.grpc import TransportHealth

HOSTILE = "<img src=x onerror=document.title='owned'>"
"""A name that runs code in a page that takes it for HTML."""


def router_loads(ejected: tuple[str, ...], generated_tokens: int = 123_456) -> tuple[RouterLoad, ...]:
    """Return two routers; the first passes over `ejected`."""
    return (
        _router("router-a", 20_000, generated_tokens, running=11, waiting=3, ejected=ejected),
        _router("router-b", 20_001, generated_tokens // 3, running=4, waiting=0, ejected=()),
    )


def busy_placement(num_experts: int, num_groups: int) -> PlacementInfo:
    """Return two replicas per group; the first replica of every group holds a copy of expert 0, which is hot.

    The second replica of the last group has a hostile name.
    """
    width = num_experts // num_groups
    replicas = []
    for group in range(num_groups):
        home = range(group * width, (group + 1) * width)
        for index in range(2):
            name = HOSTILE if (group, index) == (num_groups - 1, 1) else f"experts-{group}-{index}"
            held = sorted({*home, *([0] if index == 0 else [])})
            replicas.append(
                ExpertReplicaInfo(
                    replica_id=name,
                    group=f"experts-{home.start}-{home.stop - 1}",
                    address=f"10.0.0.{group}:{9100 + index}",
                    expert_ids=tuple(held),
                    weight_bytes=len(held) * 188_743_680,
                    pid=31_000 + 2 * group + index,
                    host=f"node-{group}",
                    home_ids=tuple(home),
                    tokens_per_s={expert: rate for expert in held if (rate := _rate(expert, index))},
                    queue_s=0.00031 * (1 + index),
                    compute_s=0.0042,
                    spare_bytes=2_000_000_000 // (1 + index),
                    registered_at_s=time.time() - 3700 * group - 5,
                )
            )
    return PlacementInfo(version=17, expert_replicas=tuple(replicas), events=_events())


def _rate(expert: int, index: int) -> float:
    """A skewed load: expert 0 hot, each fifth idle."""
    if expert == 0:
        return 640.0
    return 0.0 if expert % 5 == 4 else 400.0 / (1 + expert * 7 % 13) * (1 + 0.1 * index)


def _router(name: str, pid: int, generated: int, *, running: int, waiting: int, ejected: tuple[str, ...]) -> RouterLoad:
    load = EngineLoad(
        running=running,
        waiting=waiting,
        queued_prompt_tokens=waiting * 1700,
        kv_used_bytes=running * 400_000_000,
        kv_total_bytes=6_000_000_000,
        slots=16,
        generated_tokens=generated,
    )
    counts = DispatchCounts(shares=1_204_331, hedges=412, resends=7, probes=12)
    health = TransportHealth(counts=counts, ejections=3 + len(ejected), ejected=ejected)
    return RouterLoad(replica_id=name, load=load, pid=pid, dispatches=health)


def _events() -> tuple[ClusterEvent, ...]:
    now = time.time()
    told = [
        (3900.0, "experts-0-0", "serves experts-0-3"),
        (64.0, "experts-1-0", "is to hold a copy of expert 0"),
        (61.0, "experts-1-0", "serves a copy of expert 0"),
        (9.0, "experts-9-0", "lost: no heartbeat came any more"),
        (3.0, HOSTILE, f"serves {HOSTILE}"),
    ]
    return tuple(ClusterEvent(at_s=now - ago, subject=subject, text=text) for ago, subject, text in told)
