"""The model as the front door knows it: its name, limits, vocabulary and defaults, without a single weight."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from models.config import ModelConfig
from models.generation_config import GenerationDefaults, load_generation_defaults
from models.tokenizer import Tokenizer, load_tokenizer
from router.kv_cache.layout import CacheLayout


@dataclass(frozen=True, slots=True)
class PlannedCache:
    """The KV cache of one router."""

    layout: CacheLayout
    """What a token and a sequence take."""
    num_bytes: int
    """What there is of it: all pages of both kinds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """One model behind the front door."""

    name: str
    """What requests call it."""
    config: ModelConfig
    """Its architecture; its `eos_ids` end a generation unless the request says ignore_eos."""
    context_length: int
    """Most tokens of prompt and output together, as the routers are set; at most config.max_positions."""
    long_from: int | None = None
    """Tokens of prompt and output together from which a request is long and has routers of its own; None: none has."""
    raised_by: str = "model.context_length"
    """Settings that raise `context_length`, for those whom it refuses."""
    dtype: str
    """Dtype the routers compute in, for example float32."""
    fingerprint: str
    """Tells two checkpoints apart."""
    experts_in_router: bool = False
    """Whether each router holds all experts in its own process."""
    tokenizer: Tokenizer | None = None
    """None: only token ids can be sent."""
    cache: PlannedCache | None = None
    """What a router's KV cache takes; None: not known here."""
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    """What a request that leaves a sampling field out gets."""

    @property
    def has_tokenizer(self) -> bool:
        """Tell whether text and chat can be sent."""
        return self.tokenizer is not None


def load_served_model(
    folder: Path,
    config: ModelConfig,
    *,
    name: str,
    context_length: int,
    dtype: str,
    fingerprint: str,
    cache: PlannedCache | None = None,
    long_from: int | None = None,
    raised_by: str = "model.context_length",
    experts_in_router: bool = False,
) -> ServedModel:
    """Read what a front door needs from a model's folder: the tokenizer and the sampling defaults.

    Args:
        folder: of the checkpoint.
        config: as read from it.
        name: what requests call the model.
        context_length: as the routers are set, in tokens.
        dtype: the routers compute in.
        fingerprint: of the checkpoint.
        cache: of one router.
        long_from: tokens from which a request is long; None: none is.
        raised_by: settings that raise `context_length`.
        experts_in_router: whether each router holds all experts in its own process.

    Raises:
        BadCheckpoint: the tokenizer is unusable.
        BadConfig: generation_config.json is unusable.
    """
    return ServedModel(
        name=name,
        config=config,
        context_length=context_length,
        dtype=dtype,
        fingerprint=fingerprint,
        cache=cache,
        long_from=long_from,
        raised_by=raised_by,
        experts_in_router=experts_in_router,
        tokenizer=load_tokenizer(folder, config),
        defaults=load_generation_defaults(folder),
    )
