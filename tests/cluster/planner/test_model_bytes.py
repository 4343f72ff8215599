"""Bytes of weights: those of the published models, of every checkpoint's tensors, and of what is loaded here."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cluster.planner.model_bytes import (
    ROUTER_COMPONENTS,
    ModelBytes,
    num_active,
    num_parameters,
    num_weights,
)
from cluster.planner.weight_form import forms
from experts.weights import ExpertWeights
from models.checkpoint import open_checkpoint
from models.checkpoint.tensor_shapes import tensor_shapes
from models.linear import int4
from models.llama4.decoder import load_decoder
from models.presets import MAVERICK, SCOUT
from tests.tiny import TINY

VISION = 871_932_416
TINY_DENSE = replace(
    TINY, moe_layers=(), num_experts=0, experts_per_token=0, expert_width=0, nope_layers=(), attention_chunk=None
)


def weights(config, name, is_cpu=False):
    return ModelBytes(config, forms(name, is_cpu=is_cpu))


@pytest.mark.parametrize(
    ("config", "text", "with_vision", "active"),
    [(SCOUT, 107_769_861_120, 109e9, 16_137_912_320), (MAVERICK, 400_711_848_960, 400e9, 16_149_708_800)],
)
def test_published_models_have_the_parameters_of_their_names(config, text, with_vision, active):
    assert num_parameters(config) == text
    assert num_parameters(config) + VISION == pytest.approx(with_vision, rel=0.005)
    assert num_active(config) == active
    assert num_active(config) + num_weights(config, "embeddings") == pytest.approx(17e9, rel=0.011)


@pytest.mark.parametrize("config", [SCOUT, MAVERICK, TINY, TINY_DENSE, replace(TINY, tie_embeddings=True)])
def test_components_add_up_to_every_tensor_of_a_checkpoint(config):
    assert num_parameters(config) == sum(math.prod(shape) for shape in tensor_shapes(config).values())


@pytest.mark.parametrize(
    ("name", "is_cpu", "num_bytes"),
    [
        ("bf16", False, 251_658_240),
        ("fp8", False, 125_915_136),
        ("int4", False, 64_880_640),
        ("int4", True, 125_829_120 * 5 // 8),
    ],
)
def test_an_expert_of_one_layer_takes_its_weights_and_scales(name, is_cpu, num_bytes):
    assert weights(SCOUT, name, is_cpu).expert_layer == num_bytes


@pytest.mark.parametrize(
    ("config", "name", "router", "experts"),
    [
        (SCOUT, "bf16", 22.27e9, 193.3e9),
        (SCOUT, "fp8", 22.27e9, 96.7e9),
        (MAVERICK, "bf16", 28.33e9, 773.1e9),
        (MAVERICK, "fp8", 28.33e9, 386.8e9),
        (SCOUT, "int4", 7.78e9, 49.8e9),
        (MAVERICK, "int4", 9.365e9, 199.3e9),
    ],
)
def test_published_models_split_into_router_and_experts(config, name, router, experts):
    found = weights(config, name)
    assert found.router == pytest.approx(router, rel=2e-3)
    assert found.experts == pytest.approx(experts, rel=1e-3)
    assert found.total == found.router + found.experts == sum(map(found.component, ROUTER_COMPONENTS)) + found.experts


@pytest.mark.parametrize(
    ("name", "dtype", "quantize", "filled"),
    [
        ("fp32", torch.float32, None, 0.001),
        # Its experts' width, 144, is filled up to whole blocks, of up to 64 rows or columns.
        ("bf16", torch.bfloat16, None, 0.04),
        ("int8", torch.float32, "int8", 0.21),
        ("int4", torch.float32, "int4", 0.08),
    ],
)
def test_the_demo_model_takes_in_memory_what_is_planned(demo_dir, name, dtype, quantize, filled):
    if quantize == "int4" and not int4.is_supported(torch.device("cpu")):
        pytest.skip("this processor has no 4-bit products: it keeps 4-bit weights in 8 bits")
    checkpoint = open_checkpoint(demo_dir)
    planned = weights(checkpoint.config, name, is_cpu=True)
    experts = ExpertWeights.load(checkpoint, [0, 3], dtype, quantize=quantize)
    router = load_decoder(checkpoint, dtype=dtype, quantize=quantize)
    assert router.weight_bytes() == pytest.approx(planned.router, rel=filled)
    assert experts.weight_bytes == pytest.approx(2 * planned.expert, rel=filled)
