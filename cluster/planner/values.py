"""A plan as a fragment of the chart's values.yaml. The only place that knows how the two go together.

    settings    the application's, as docs/settings.md lists them: what `herd serve --config` reads, verbatim
    workers     one group of Ray workers per role: how many, how many GPUs of which kind each, and what share of a GPU
                a replica takes where two roles share one

What this version's settings do not know is written as a comment, so that the rest can be deployed as it is.
"""

from __future__ import annotations

from typing import Any

import yaml  # type: ignore[import-untyped]

from cluster.config import ClusterConfig
from cluster.config_source import with_values
from cluster.planner.capacity_plan import CapacityPlan
from cluster.planner.missing import undeployable
from models.presets import ARCHITECTURES
from protos.errors import BadConfig
from router.limits import most_step_tokens

Settings = dict[str, dict[str, Any]]

_WEIGHTS_FOLDER = "/models/{}"
"""Where the chart mounts weights; a preset is an architecture, its weights are the user's."""


def as_values(plan: CapacityPlan, command: str) -> str:
    """Return the fragment.

    Args:
        plan: what to deploy.
        command: that made it, for the first line.
    """
    wanted = settings(plan)
    known, unknown = split_known(wanted)
    lines = [f"# {command}", *(f"# this version of Herd cannot deploy it: {each}" for each in undeployable(plan))]
    lines += [_dump({"settings": known}).rstrip()]
    if unknown:
        lines.append("# wanted too, but this version of Herd has no such setting or value:")
        lines += [f"#   {section}.{key}: {value}" for section, keys in unknown.items() for key, value in keys.items()]
    return "\n".join([*lines, _dump({"workers": workers(plan)})])


def settings(plan: CapacityPlan) -> Settings:
    """Return the settings that make a Herd this plan, known to this version or not."""
    question, shape, memory = plan.question, plan.placement.shape, plan.memory
    is_cpu = question.fleet.device.is_cpu
    name = question.model_name
    path = _WEIGHTS_FOLDER.format(name) if name in ARCHITECTURES else name
    found: Settings = {
        "model": {"path": path, "context_length": question.context},
        "router": {
            "replicas": shape.routers,
            "dtype": "float32" if question.item_bytes == 4 else "bfloat16",
            "slots": memory.slots,
            "step_tokens": _step_tokens(plan),
            "kv_bytes": memory.kv_bytes,
            "kv_dtype": question.kv_dtype,
        },
        "scaling": {"front_door_min_replicas": plan.num_front_doors},
    }
    if question.weights not in ("fp32", "bf16"):
        found["model"]["quantize"] = question.weights
    if shape.groups:
        found["experts"] = {
            "groups": shape.groups,
            "replicas_per_group": shape.copies,
            "spare_experts": memory.spare_experts,
        }
    if shape.shards:
        found["context"] = {"shards": shape.shards, "kv_bytes": memory.shard_bytes}
    if question.fleet.num_devices > 1:
        # Each worker is a pod with an address of its own, on one node, too.
        for section in found.keys() & {"experts", "context"}:
            found[section]["host"] = None
    if is_cpu and shape.groups:
        found["experts"]["warm_spares"] = 0  # memory for spares is not planned
    if not is_cpu:
        found["router"]["device"] = "cuda"
    if shape.is_local:
        found["experts"]["in_router"] = True
    return found


def _step_tokens(plan: CapacityPlan) -> int:
    """Return the tokens of a step: fewer than memory is planned for where they have to travel to the experts."""
    if plan.placement.shape.is_local:
        return plan.memory.step_tokens
    return min(plan.memory.step_tokens, most_step_tokens(plan.question.config, plan.question.item_bytes))


def workers(plan: CapacityPlan) -> dict[str, dict[str, Any]]:
    """Return the groups of workers, by role."""
    question, shape = plan.question, plan.placement.shape
    gpu = {} if question.fleet.device.is_cpu else {"gpuKind": question.fleet.device.name}
    found: dict[str, dict[str, Any]] = {"frontDoors": {"replicas": plan.num_front_doors, "gpus": 0}}
    counts = {"routers": shape.routers, "experts": shape.groups * shape.copies, "contextShards": shape.shards}
    roles = {"routers": "router", "experts": "experts", "contextShards": "context shard"}
    for group, count in counts.items():
        if count and not (group == "experts" and shape.is_local):
            share = max(
                len(parts) for parts in plan.placement.devices if any(part.role == roles[group] for part in parts)
            )
            share = 1 if shape.is_local else share
            gpus = 0 if question.fleet.device.is_cpu else (1 if share == 1 else round(1 / share, 3))
            found[group] = {"replicas": count, "gpus": gpus, **gpu}
    if question.fleet.nodes > 1 and shape.copies > 1:
        found["experts"]["spreadCopiesOverNodes"] = True
    return found


def split_known(wanted: Settings) -> tuple[Settings, Settings]:
    """Return the settings that this version knows, and the others."""
    known: Settings = {}
    unknown: Settings = {}
    for section, keys in wanted.items():
        for key, value in keys.items():
            try:
                with_values(ClusterConfig(), {section: {key: value}}, source="")
                known.setdefault(section, {})[key] = value
            except BadConfig:
                unknown.setdefault(section, {})[key] = value
    return known, unknown


def _dump(values: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(values, sort_keys=False, default_flow_style=False)
    return text
