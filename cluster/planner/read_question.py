"""What a command line asks, out of its texts."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from cluster.machine import read_machine
from cluster.planner.hardware import parse_fleet
from cluster.planner.question import Question
from cluster.planner.weight_form import WeightFormat
from models.config import ModelConfig
from models.hf_config import HF_CONFIG, read_hf_config
from models.presets import ARCHITECTURES, DEMO, resolve_model
from protos.errors import BadConfig
from router.kv_cache.layout import KvDtype

_CONTEXT = 32_768
_CONCURRENCY = 16
_TOKENS = {"": 1, "k": 1024, "m": 1024**2}
_BYTES = {"": 1, "mb": 10**6, "gb": 10**9, "tb": 10**12, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_KV_NAMES: dict[str, KvDtype] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """Options as they are given; None: not given."""

    model: str
    gpus: str
    memory: str | None = None
    quantize: str | None = None
    kv_dtype: str | None = None
    context: str | None = None
    concurrency: int | None = None
    copies: int = 1


def read_question(texts: Texts) -> Question:
    """Return the question.

    Raises:
        BadConfig: a text says nothing that can be planned, or there is no such model.
    """
    is_cpu = texts.gpus.strip().lower().endswith("cpu")
    memory = None if texts.memory is None else parse_number(texts.memory, _BYTES, "--memory", "16GiB")
    if is_cpu and memory is None:
        memory = read_machine().free_bytes
    weights = _choice(texts.quantize or ("fp32" if is_cpu else "bf16"), get_args(WeightFormat), "--quantize")
    plain: KvDtype = "float32" if is_cpu and weights != "bf16" else "bfloat16"
    given = texts.kv_dtype or plain
    config = read_config(texts.model)
    context = _CONTEXT if texts.context is None else parse_number(texts.context, _TOKENS, "--context", "128k")
    question = Question(
        model_name=texts.model,
        config=config,
        fleet=parse_fleet(texts.gpus, memory),
        weights=weights,  # type: ignore[arg-type]
        kv_dtype=_choice(_KV_NAMES.get(given, given), get_args(KvDtype), "--kv-dtype"),  # type: ignore[arg-type]
        context=min(context, config.max_positions) if texts.context is None else context,
        concurrency=_CONCURRENCY if texts.concurrency is None else texts.concurrency,
        copies=texts.copies,
    )
    question.check()
    return question


def read_config(model: str) -> ModelConfig:
    """Return the architecture of a preset, or of a folder.

    Raises:
        BadConfig: there is no such model.
        BadCheckpoint: a folder in Meta's layout is broken: its files say what the vocabulary is.
    """
    if model in ARCHITECTURES and not Path(model).exists():
        return ARCHITECTURES[model]
    close = difflib.get_close_matches(model, [*ARCHITECTURES, DEMO], n=1)
    if close and not Path(model).exists() and model != DEMO:
        known = ", ".join([*ARCHITECTURES, DEMO])
        raise BadConfig(f"expected {known} or a model's folder, found {model!r}: did you mean {close[0]}?")
    folder = resolve_model(model)
    if (folder / HF_CONFIG).is_file():
        return read_hf_config(folder)
    from models.checkpoint import open_checkpoint  # imports torch, which takes seconds

    return open_checkpoint(folder).config


def parse_number(text: str, units: dict[str, int], name: str, example: str) -> int:
    """Return a number with a unit as a whole number.

    Raises:
        BadConfig: it is none.
    """
    match = re.fullmatch(r"([\d_,]*\.?\d+)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in units:
        known = ", ".join(unit for unit in units if unit)
        raise BadConfig(f"{name}: expected a number, and {known} if any, found {text!r}; for example {example}")
    return round(float(match[1].replace(",", "").replace("_", "")) * units[match[2]])


def _choice(value: str, choices: tuple[str, ...], name: str) -> str:
    if value not in choices:
        raise BadConfig(f"{name}: expected one of {', '.join(choices)}, found {value!r}; choose one")
    return value
