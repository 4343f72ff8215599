"""A model's weights by component: matrices from its configuration, bytes from the form they are stored in.

The shapes are those of models/checkpoint/tensor_shapes.py, which a checkpoint is checked against; a test compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from cluster.planner.weight_form import Component, Form
from models.config import ModelConfig

ROUTER_COMPONENTS: tuple[Component, ...] = (
    "attention",
    "shared expert",
    "dense MLP",
    "embeddings",
    "LM head",
    "gates and norms",
)
"""What a router holds: everything but routed experts."""

Matrix = tuple[int, int, int]
"""(how many, outputs, inputs)."""


@dataclass(frozen=True)
class ModelBytes:
    """Bytes of a model's weights.

    Args:
        config: the model.
        forms: how each component is stored.
    """

    config: ModelConfig
    forms: Mapping[Component, Form]

    def component(self, component: Component) -> int:
        """Return the bytes of one of a router's components, or of one routed expert through all MoE layers."""
        return self._by_component[component]

    @cached_property
    def _by_component(self) -> dict[Component, int]:
        return {
            component: sum(count * form.matrix_bytes(*shape) for count, *shape in self._matrices(component))
            for component, form in self.forms.items()
        }

    @cached_property
    def router(self) -> int:
        """Return the bytes a router holds."""
        return sum(self.component(component) for component in ROUTER_COMPONENTS)

    @property
    def expert(self) -> int:
        """Return the bytes of one routed expert through all MoE layers."""
        return self.component("experts")

    @property
    def expert_layer(self) -> int:
        """Return the bytes of one routed expert in one MoE layer."""
        return self.expert // max(len(self.config.moe_layers), 1)

    @property
    def experts(self) -> int:
        """Return the bytes of all routed experts, each held once."""
        return self.expert * self.config.num_experts

    @property
    def total(self) -> int:
        """Return the bytes of the whole model, each weight held once."""
        return self.router + self.experts

    def _matrices(self, component: Component) -> Iterator[Matrix]:
        # A copy of tied embeddings in 8 bits is the only LM head of its own that such a model has.
        is_tied = self.config.tie_embeddings and self.forms["LM head"] == self.forms["embeddings"]
        return iter(()) if component == "LM head" and is_tied else matrices(self.config, component)


def matrices(config: ModelConfig, component: Component) -> Iterator[Matrix]:
    """Yield the matrices of a component; of `experts`, those of one expert. Vectors are matrices of one output."""
    hidden, num_moe = config.hidden_size, len(config.moe_layers)
    q_width, kv_width = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    if component == "attention":
        yield config.num_layers, q_width, hidden
        yield 2 * config.num_layers, kv_width, hidden
        yield config.num_layers, hidden, q_width
    elif component in ("embeddings", "LM head"):
        yield 1, config.vocab_size, hidden
    elif component == "gates and norms":
        yield num_moe, config.num_experts, hidden
        yield 2 * config.num_layers + 1, 1, hidden
    elif component == "experts":
        yield num_moe, 2 * config.expert_width, hidden
        yield num_moe, hidden, config.expert_width
    else:
        count, width = (num_moe, config.expert_width)
        if component == "dense MLP":
            count, width = config.num_layers - num_moe, config.dense_width
        yield 2 * count, width, hidden
        yield count, hidden, width


def num_weights(config: ModelConfig, component: Component) -> int:
    """Count the weights of a component; of `experts`, those of one expert."""
    return sum(count * outputs * inputs for count, outputs, inputs in matrices(config, component))


def num_parameters(config: ModelConfig) -> int:
    """Count the parameters of the language model; a vision tower is not served and not counted."""
    head = 0 if config.tie_embeddings else num_weights(config, "LM head")
    rest = sum(num_weights(config, each) for each in ROUTER_COMPONENTS if each != "LM head")
    return rest + head + config.num_experts * num_weights(config, "experts")


def num_active(config: ModelConfig) -> int:
    """Count the weights that a token is multiplied with, embeddings and norms aside."""
    gates = len(config.moe_layers) * config.num_experts * config.hidden_size
    inner: tuple[Component, ...] = ("attention", "shared expert", "dense MLP", "LM head")
    return (
        gates
        + sum(num_weights(config, each) for each in inner)
        + config.experts_per_token * num_weights(config, "experts")
    )
