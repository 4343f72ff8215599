"""What a router holds whose experts are in its process."""

from __future__ import annotations

import pytest
import torch

from cluster.config_source import load_config
from cluster.machine import Machine
from cluster.plan import make_plan
from cluster.router_model import load_router_model
from experts.weights import ExpertWeights
from models.checkpoint import open_checkpoint
from router.forward import Forward
from router.transport.local import LocalTransport
from tests.models.checkpoint_files import write_hf
from tests.parity.splits import run_in_splits

MACHINE = Machine(cores=1, free_bytes=8 * 1024**3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hf(tmp_path_factory.mktemp("tiny"))


def loaded(folder, *assignments):
    checkpoint = open_checkpoint(folder)
    told = []
    plan = make_plan(load_config(assignments=assignments), checkpoint, "tiny", MACHINE)
    return load_router_model(plan, checkpoint, lambda done, total: told.append((done, total))), told


def test_a_router_reads_no_expert_unless_they_are_to_be_in_its_process(folder):
    split, told = loaded(folder)
    assert split.experts is None
    whole, told_whole = loaded(folder, "experts.in_router=true")
    assert whole.experts.expert_ids == (0, 1, 2, 3)
    checkpoint = open_checkpoint(folder)
    assert {total for _, total in told} == {checkpoint.router_bytes}
    assert told_whole[-1] == (checkpoint.total_bytes, checkpoint.total_bytes)


@pytest.mark.parametrize("quantize", [(), ("model.quantize=int8",)])
def test_experts_in_the_process_compute_what_those_of_other_processes_do(folder, quantize):
    whole, _ = loaded(folder, "experts.in_router=true", *quantize)
    split, _ = loaded(folder, *quantize)
    elsewhere = ExpertWeights.load(
        open_checkpoint(folder), range(4), torch.float32, quantize="int8" if quantize else None
    )
    prompt = [list(range(1, 20))]
    expected = run_in_splits(Forward(split.decoder, LocalTransport(elsewhere.run)), prompt, [19])
    found = run_in_splits(Forward(whole.decoder, whole.local_transport()), prompt, [19])
    assert torch.equal(found[0], expected[0])
    layer = whole.experts.layers[0]
    assert whole.local_transport().resident(layer) == whole.experts.held_in(layer)
