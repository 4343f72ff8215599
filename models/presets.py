"""Models with a name: the two published Llama 4 architectures, and the demo model that Herd ships."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path

from models.config import ModelConfig, RopeScaling
from models.hf_config import HF_CONFIG
from models.meta_config import META_PARAMS
from protos.errors import BadConfig

DEMO = "demo"
DEMO_FOLDER = Path(__file__).resolve().parent / "demo"

# Source: config.json of meta-llama/Llama-4-Scout-17B-16E-Instruct and -Maverick-17B-128E-Instruct.
SCOUT = ModelConfig(
    family="llama4",
    num_layers=48,
    hidden_size=5120,
    num_heads=40,
    num_kv_heads=8,
    head_size=128,
    vocab_size=202_048,
    expert_width=8192,
    dense_width=16_384,
    num_experts=16,
    experts_per_token=1,
    moe_layers=tuple(range(48)),
    nope_layers=tuple(range(3, 48, 4)),
    attention_chunk=8192,
    rope_theta=500_000.0,
    rope_scaling=RopeScaling(factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_positions=8192),
    rope_interleaved=True,
    qk_norm=True,
    attn_temperature=True,
    temperature_floor=8192.0,
    temperature_scale=0.1,
    norm_eps=1e-5,
    max_positions=10_485_760,
    tie_embeddings=False,
    bos_id=200_000,
    eos_ids=(200_001, 200_007, 200_008),
    pad_id=200_018,
    dtype="bfloat16",
)
MAVERICK = dataclasses.replace(
    SCOUT,
    num_experts=128,
    moe_layers=tuple(range(1, 48, 2)),
    rope_scaling=None,
    qk_norm=False,
    max_positions=1_048_576,
)
ARCHITECTURES = {"scout": SCOUT, "maverick": MAVERICK}


def resolve_model(model: str = DEMO) -> Path:
    """Return the folder that a model's name or path stands for.

    Args:
        model: `demo`, or the path of a folder in Hugging Face's or Meta's layout.

    Raises:
        BadConfig: there is no such folder, or no model in it.
    """
    if model == DEMO:
        return _model_folder(DEMO_FOLDER)
    if model in ARCHITECTURES and not Path(model).exists():
        raise BadConfig(
            f"expected a folder with weights, found {model!r}, the name of an architecture: download the weights "
            f"(meta-llama/Llama-4-{model.capitalize()}-* on huggingface.co, or Meta's own files) and give their folder"
        )
    return _model_folder(Path(model).expanduser())


def _model_folder(folder: Path) -> Path:
    if not folder.exists():
        raise BadConfig(f"expected a model folder or the name {DEMO!r}, found no {folder}{_suggestion(folder)}")
    if not folder.is_dir():
        raise BadConfig(f"expected a model folder, found the file {folder}: give the folder it is in")
    if not any((folder / name).is_file() for name in (HF_CONFIG, META_PARAMS)):
        inner = sorted({str(path.parent) for name in (HF_CONFIG, META_PARAMS) for path in folder.glob(f"*/{name}")})
        advice = f"did you mean {' or '.join(inner[:3])}?" if inner else "give the folder that holds the model's files"
        raise BadConfig(f"{folder}: expected {HF_CONFIG} or {META_PARAMS}, found neither: {advice}")
    return folder


def _suggestion(folder: Path) -> str:
    """Return what to try instead of a folder that does not exist: names that look alike."""
    parent = folder.parent
    siblings = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    names = {name: str(parent / name) for name in siblings} | ({DEMO: DEMO} if len(folder.parts) == 1 else {})
    close = [names[name] for name in difflib.get_close_matches(folder.name, names, n=3)]
    return f": did you mean {' or '.join(close)}?" if close else f": {parent} holds no folder of a similar name"
