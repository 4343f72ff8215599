"""What a plan is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from cluster.planner.hardware import Fleet
from cluster.planner.model_bytes import ModelBytes
from cluster.planner.weight_form import WeightFormat, activation_bytes, forms
from models.config import ModelConfig
from protos.errors import BadConfig
from router.kv_cache.layout import KvDtype


@dataclass(frozen=True, kw_only=True)
class Question:
    """A model, devices, and what is to be served at once."""

    model_name: str
    """A preset's, or the folder as it was given."""
    config: ModelConfig
    fleet: Fleet
    weights: WeightFormat
    """What weights are stored in."""
    kv_dtype: KvDtype
    """What keys and values are stored in."""
    context: int
    """Tokens of each sequence, prompt and output; 2 to the model's most."""
    concurrency: int
    """Sequences at once, over all routers; at least 1."""
    copies: int = 1
    """Fewest replicas of each expert; at least 1. They are on different GPUs, and on different nodes if there are."""

    def check(self) -> None:
        """Refuse what cannot be planned for.

        Raises:
            BadConfig: a number is out of range, or these weights do not go with these devices.
        """
        most = self.config.max_positions
        if not 2 <= self.context <= most:
            raise BadConfig(f"--context: expected 2 to the model's {most:,} tokens, found {self.context:,}; change it")
        for name in ("concurrency", "copies"):
            if getattr(self, name) < 1:
                raise BadConfig(f"--{name}: expected at least 1, found {getattr(self, name)}; raise it")
        if self.fleet.device.is_cpu and self.weights == "fp8":
            raise BadConfig("--quantize: expected bf16, fp32, int8 or int4 on a CPU, found fp8; choose int8")
        if not self.fleet.device.is_cpu and self.weights == "fp32":
            raise BadConfig("--quantize: expected bf16, fp8, int8 or int4 on a GPU, found fp32; choose bf16")

    @property
    def item_bytes(self) -> int:
        """Return the bytes of one number that is computed with."""
        return activation_bytes(self.weights, is_cpu=self.fleet.device.is_cpu)

    @cached_property
    def model_bytes(self) -> ModelBytes:
        """Return the bytes of the model's weights."""
        return ModelBytes(self.config, forms(self.weights, is_cpu=self.fleet.device.is_cpu))
