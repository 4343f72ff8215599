"""Questions that tests ask."""

from __future__ import annotations

from dataclasses import replace

from cluster.planner.hardware import parse_fleet
from cluster.planner.question import Question
from models.presets import MAVERICK, SCOUT

PRESETS = {"scout": SCOUT, "maverick": MAVERICK}
# Deployments whose values the chart keeps as profiles.
PROFILES = {
    "scout-1xh100-int4": ("scout", "h100", {"weights": "int4", "context": 262_144, "concurrency": 1}),
    "scout-8xh100": ("scout", "8xh100", {"context": 131_072, "concurrency": 16}),
    "maverick-8xh200-fp8": ("maverick", "8xh200", {"weights": "fp8", "context": 131_072, "concurrency": 16}),
    "maverick-2x8-multinode": ("maverick", "2x8xh200", {"weights": "fp8", "context": 131_072, "copies": 2}),
}


def ask(model: str, fleet: str, memory_bytes: int | None = None, **changes) -> Question:
    config = PRESETS[model]
    question = Question(
        model_name=model,
        config=config,
        fleet=parse_fleet(fleet, memory_bytes),
        weights="bf16",
        kv_dtype="bfloat16",
        context=32_768,
        concurrency=16,
    )
    return replace(question, **changes)


def ask_profile(name: str) -> Question:
    model, fleet, changes = PROFILES[name]
    return ask(model, fleet, **changes)
