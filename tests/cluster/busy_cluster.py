"""A cluster worth looking at, made up: routers, expert replicas in groups, copies, ejections, events, hostile names."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from cluster.directory import Departures
from cluster.events import ClusterEvent
from cluster.layer_load import LayerLoad
from cluster.replica_roster import ReplicaInfo
from cluster.router_client import ExpertReplicaInfo, PlacementInfo, RouterLoad
from cluster.served_model import ServedModel
from router.request import EngineLoad, PageCounts
from router.transport.health import DispatchCounts, DispatchTimes, LaneInUse, TransportHealth

HOSTILE = "<img src=x onerror=document.title='owned'>"
"""A name that runs code in a page that takes it for HTML."""


def router_loads(ejected: tuple[str, ...], generated_tokens: int = 123_456) -> tuple[RouterLoad, ...]:
    """Return two routers; the first passes over `ejected`."""
    return (
        _router("router-a", 20_000, generated_tokens, running=11, waiting=3, ejected=ejected),
        _router("router-b", 20_001, generated_tokens // 3, running=4, waiting=0, ejected=()),
    )


def with_experts(model: ServedModel, num_experts: int) -> ServedModel:
    """Return the same model with so many experts: as many as a placement is about."""
    return replace(model, config=replace(model.config, num_experts=num_experts))


def busy_placement(num_experts: int, num_groups: int, num_layers: int = 4) -> PlacementInfo:
    """Return two replicas per group; the first replica of every group holds a copy of expert 0, which is hot.

    The second replica of the last group has a hostile name. Every second layer is a MoE layer.
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
    return PlacementInfo(
        version=17,
        expert_replicas=tuple(replicas),
        events=_events(),
        departures=Departures(left=3, lost=1, drained_nodes=2),
        num_draining_nodes=1,
        layer_load=_layer_load(num_experts, num_layers),
        roster=(*_unready(), *(_ready(each.replica_id, each.group, each.pid) for each in replicas)),
    )


def _layer_load(num_experts: int, num_layers: int) -> LayerLoad:
    """Each layer with a favourite of its own; expert 0 is hot in layer 1."""
    rates_E = np.array([_rate(expert, 0) for expert in range(num_experts)])
    load_LE = np.stack([rates_E / (1 + (np.arange(num_experts) + 5 * row) % 7) for row in range(num_layers)])
    layers = tuple(range(1, 2 * num_layers, 2))
    return LayerLoad(layers=layers, experts=tuple(range(num_experts)), tokens_per_s_LE=load_LE.astype(np.float32))


def _unready() -> tuple[ReplicaInfo, ...]:
    """One of every state but ready."""
    now_s = time.time()
    return (
        ReplicaInfo(
            replica_id="experts-7-x",
            deployment="Experts-7",
            state="failed",
            reason=f"expected 64 tensors in the checkpoint, found 63 and {HOSTILE}; download it again",
            since_s=now_s - 40,
            host="10.0.0.7",
            pid=4711,
        ),
        ReplicaInfo(replica_id="experts-6-s", deployment="Experts-6", state="silent", since_s=now_s - 900, pid=4712),
        ReplicaInfo(
            replica_id="experts-5-l",
            deployment="Experts-5",
            state="starting",
            done_bytes=1_500_000_000,
            total_bytes=6_000_000_000,
            since_s=now_s - 4,
            host="10.0.0.5",
            pid=4713,
        ),
        ReplicaInfo(replica_id="router-w", deployment="Router", state="starting", waits_for="experts [3]", pid=4714),
        ReplicaInfo(replica_id="door-p", deployment="FrontDoor", state="starting", since_s=now_s - 1),
        ReplicaInfo(replica_id="experts-4-d", deployment="Experts-4", state="draining", since_s=now_s - 7200, pid=4715),
        _ready("door-a", "FrontDoor", 4716),
        _ready("router-a", "Router", 20_000),
        _ready("router-b", "Router", 20_001),
    )


def _ready(replica_id: str, deployment: str, pid: int) -> ReplicaInfo:
    since_s = time.time() - 3_700
    return ReplicaInfo(
        replica_id=replica_id, deployment=deployment, state="ready", since_s=since_s, host="10.0.0.1", pid=pid
    )


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
        global_pages=PageCounts(total=1000, used=running * 50, kept=30),
        local_pages=PageCounts(total=200, used=running * 10),
        slots=16,
        generated_tokens=generated,
    )
    counts = DispatchCounts(shares=1_204_331, hedges=412, resends=7, probes=12)
    lanes = {"experts-0-0": LaneInUse("shm", "the card has no room")}
    times = DispatchTimes(answers=1_204_300, total_s=5400.0, queue_s=370.0, compute_s=4100.0)
    health = TransportHealth(counts=counts, times=times, ejections=3 + len(ejected), ejected=ejected, lanes=lanes)
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
