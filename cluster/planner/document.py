"""A plan as plain data, for programs."""

from __future__ import annotations

from typing import Any

from cluster.planner.assumptions import (
    BUFFER_BYTES,
    CPU_STEP_S,
    CPU_STEP_TOKENS,
    FLOPS_SHARE,
    GPU_PROCESS_BYTES,
    HOP_S,
    MARGIN,
    MEMORY_SHARE,
    NETWORK_HOP_S,
    NETWORK_SHARE,
    PROCESS_BYTES,
    RAY_BYTES,
    SHARD_PAGE_TOKENS,
    STEP_S,
    STEP_TOKENS,
    SWAP_SHARE,
    Assumption,
    Origin,
)
from cluster.planner.capacity_plan import CapacityPlan
from cluster.planner.missing import missing, published
from cluster.planner.model_bytes import num_active, num_parameters
from cluster.planner.question import Question
from cluster.planner.roofline import Duration


def as_object(plan: CapacityPlan) -> dict[str, Any]:
    """Return everything a plan says; bytes and seconds, no other units."""
    question, memory = plan.question, plan.memory
    return {
        "fits": True,
        "asked": asked(question),
        "model": {
            "parameters": num_parameters(question.config),
            "active_weights_per_token": num_active(question.config),
            "weight_bytes": question.model_bytes.total,
            "router_bytes": question.model_bytes.router,
            "expert_bytes": question.model_bytes.expert,
            "kv_global_bytes_per_token": memory.router_layout.global_token_bytes,
            "kv_local_bytes_per_sequence_at_most": memory.router_layout.pages_bytes(
                0, memory.router_layout.num_pages(question.config.max_positions)[1]
            ),
        },
        "placement": {
            "routers": plan.placement.shape.routers,
            "expert_groups": plan.placement.shape.groups,
            "replicas_per_group": plan.placement.shape.copies if plan.placement.shape.groups else 0,
            "context_shards": plan.placement.shape.shards,
            "front_doors": plan.num_front_doors,
            "experts_in_router_process": plan.placement.shape.is_local,
            "devices": [
                {
                    "device": index,
                    "node": question.fleet.node_of(index),
                    "holds": [
                        {"role": part.role, "index": part.index, "copy": part.copy, "experts": list(part.experts)}
                        for part in parts
                    ],
                    "bytes": memory.device_bytes(index),
                }
                for index, parts in enumerate(plan.placement.devices)
            ],
        },
        "fits_at_most": {
            "context_at_asked_concurrency": memory.longest_context(question.concurrency),
            "context_of_one_sequence": memory.longest_context(1),
            "concurrency_at_asked_context": memory.most_sequences(question.context),
        },
        "expected": {
            "tokens_per_s": plan.tokens_per_s,
            "tokens_per_s_each": 1 / plan.step.seconds,
            "tokens_per_s_alone": 1 / plan.lone_step.seconds,
            "ttft_s": plan.prompt.seconds,
            "step_s": _parts(plan.step),
            "lone_step_s": _parts(plan.lone_step),
            "prompt_s": _parts(plan.prompt),
        },
        "assumptions": [
            {"what": each.what, "value": each.value, "unit": each.unit, "origin": each.origin, "source": each.source}
            for each in assumptions(plan)
        ],
        "not_in_this_version": list(missing(plan)),
        "published": published(question),
    }


def asked(question: Question) -> dict[str, Any]:
    """Return what was asked."""
    return {
        "model": question.model_name,
        "gpus": question.fleet.text,
        "memory_bytes": int(question.fleet.device.memory_bytes),
        "weights": question.weights,
        "kv_dtype": question.kv_dtype,
        "context": question.context,
        "concurrency": question.concurrency,
        "copies": question.copies,
    }


def assumptions(plan: CapacityPlan) -> list[Assumption]:
    """Return what the plan rests on besides shapes, those that matter to it."""
    device, shape = plan.question.fleet.device, plan.placement.shape
    origin: Origin = "measured" if device.is_cpu else "vendor"
    found = [
        Assumption("memory", device.memory_bytes, "B", "setting", "as given")
        if device.is_cpu
        else Assumption("memory", device.memory_bytes, "B", "vendor", device.source),
        Assumption("bytes read from it", device.memory_bytes_per_s, "B/s", origin, device.source),
        Assumption("arithmetic, bf16", device.flops, "FLOP/s", origin, device.source),
        MEMORY_SHARE,
        FLOPS_SHARE,
    ]
    if plan.question.fleet.num_devices > 1 or device.is_cpu:
        link: Origin = "guess" if device.is_cpu else "vendor"
        source = "half of what memory gives" if device.is_cpu else device.source
        found += [Assumption("link, each way", device.link_bytes_per_s, "B/s", link, source), HOP_S]
    if plan.question.fleet.nodes > 1:
        found += [Assumption("network, each way", device.network_bytes_per_s, "B/s", "guess", ""), NETWORK_HOP_S]
    if plan.question.fleet.num_devices > 1:
        found.append(NETWORK_SHARE)
    found += (
        [CPU_STEP_S, PROCESS_BYTES, BUFFER_BYTES, RAY_BYTES, SWAP_SHARE]
        if device.is_cpu
        else [STEP_S, GPU_PROCESS_BYTES]
    )
    found.append((CPU_STEP_TOKENS if device.is_cpu else STEP_TOKENS).with_value(plan.memory.step_tokens))
    found += [SHARD_PAGE_TOKENS] if shape.shards else []
    return [*found, MARGIN]


def _parts(duration: Duration) -> dict[str, float]:
    return {**duration.parts, "total": duration.seconds}
