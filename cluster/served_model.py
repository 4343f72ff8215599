"""The model as the front door knows it: its name, limits, vocabulary and defaults, without a single weight."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.config import ModelConfig
from models.tokenizer import Tokenizer
from protos.errors import BadConfig, InvalidRequest
from router.request import SamplingParams
from router.sampling import check_sampling

GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """One model behind the front door."""

    name: str
    """What requests call it."""
    config: ModelConfig
    """Its architecture."""
    context_length: int
    """Most tokens of prompt and output together, as the routers are set; at most config.max_positions."""
    dtype: str
    """Dtype the routers compute in, for example float32."""
    fingerprint: str
    """Tells two checkpoints apart."""
    tokenizer: Tokenizer | None = None
    """None: only token ids can be sent."""
    defaults: SamplingParams = field(default_factory=SamplingParams)
    """What a request that leaves a field out gets; the seed in it is not used."""
    end_ids: frozenset[int] = frozenset()
    """Tokens that end a generation unless the request says ignore_eos."""

    @property
    def has_tokenizer(self) -> bool:
        """Tell whether text and chat can be sent."""
        return self.tokenizer is not None


def read_sampling_defaults(folder: Path) -> SamplingParams:
    """Read a model folder's generation_config.json; a folder without one gets plain sampling.

    `do_sample` is not read: files that were saved without a thought say false, and vLLM does not read it either.

    Raises:
        BadConfig: the file is not what it should be.
    """
    path = folder / GENERATION_CONFIG
    fields = {
        name: value
        for name, value in _read_generation_config(folder).items()
        if name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty") and value is not None
    }
    for name, value in fields.items():
        kinds = (int,) if name == "top_k" else (int, float)
        if type(value) not in kinds:
            raise BadConfig(f"{path}: expected a number as {name}, found {value!r}; correct the file")
    defaults = SamplingParams(**fields)
    try:
        check_sampling(defaults)
    except InvalidRequest as error:
        raise BadConfig(f"{path}: {error.message}; correct the file") from error
    return defaults


def read_end_ids(folder: Path, config: ModelConfig) -> frozenset[int]:
    """Return the tokens that end a generation: the configuration's and generation_config.json's.

    Raises:
        BadConfig: the file is not what it should be.
    """
    found = _read_generation_config(folder).get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    for each in ids:
        if type(each) is not int or not 0 <= each < config.vocab_size:
            raise BadConfig(
                f"{folder / GENERATION_CONFIG}: expected eos_token_id in [0, {config.vocab_size}), found {each!r}; "
                "correct the file"
            )
    return frozenset(config.eos_ids) | frozenset(ids)


def _read_generation_config(folder: Path) -> dict[str, Any]:
    path = folder / GENERATION_CONFIG
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise BadConfig(f"{path}: expected a JSON object, found {error}; correct or remove the file") from error
    if not isinstance(fields, dict):
        raise BadConfig(f"{path}: expected a JSON object, found {type(fields).__name__}; correct or remove the file")
    return fields
