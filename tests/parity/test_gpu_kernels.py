"""The path of a GPU against transformers' fp32 outputs: on a GPU, or its kernels in Triton's interpreter on the CPU."""

from __future__ import annotations

import queue

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from models.checkpoint import open_checkpoint
from router.engine import Engine
from router.forward import Forward
from router.limits import EngineLimits
from router.request import Ended, GenerationRequest, SamplingParams, TokenChosen
from router.resident import resident_experts
from router.transport.local import LocalTransport
from tests.parity.gpu_model import load_gpu_model
from tests.parity.splits import run_in_splits

TOLERANCE = 1e-3
STEPS = [9, 4, 1]
"""Over the end of a chunk of 8, in a prompt, in its continuation, and by a lone token."""
WAIT_S = 120


@pytest.fixture(scope="module")
def case(request, shared_dir):
    """Return a model whose attention and experts are the GPU's, and the golden outputs."""
    folder = shared_dir / "goldens" / request.param
    return load_gpu_model(open_checkpoint(folder)), load_file(folder / "golden.safetensors")


@pytest.mark.parametrize("case", ["top2"], indirect=True)
def test_logits_are_those_of_transformers_over_prompts_and_lone_tokens(case):
    """With tokens sorted by expert on the device; where the host does it, `test_gpu_quantized` asks."""
    model, golden = case
    resident = resident_experts(model.decoder, model.transport)
    num_tokens = sum(STEPS)
    ids = golden["input_ids"][:1, :num_tokens]
    logits = run_in_splits(Forward(model.decoder, model.transport, resident=resident), ids, STEPS)
    expected = golden["logits_full"][:1, :num_tokens]
    assert (logits.cpu() - expected).abs().max() < TOLERANCE


class Recorded(TorchDispatchMode):
    """Notes the operators that make a host wait for the device: those that tell it a number."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "unique_dim"):
            self.waits.append(str(function))
        return function(*args, **(kwargs or {}))


def generate(engine, golden, num_tokens):
    """Run the golden prompt several times at once, for so many tokens each; return the tokens of each."""
    prompt = tuple(golden["greedy_prompt"][0].tolist())
    events = [queue.Queue() for _ in num_tokens]
    found = [[] for _ in num_tokens]
    engine.start()
    try:
        for number, (many, receiver) in enumerate(zip(num_tokens, events, strict=True)):
            sampling = SamplingParams(temperature=0.0)
            wanted = GenerationRequest(request_id=str(number), prompt_ids=prompt, max_tokens=many, sampling=sampling)
            engine.submit(wanted, receiver.put)
        for tokens, receiver in zip(found, events, strict=True):
            while not isinstance(event := receiver.get(timeout=WAIT_S), Ended):
                tokens += [event.token_id] if isinstance(event, TokenChosen) else []
            assert event.reason == "length", event.error
    finally:
        engine.stop()
    return found


def watch(engine, monkeypatch):
    """Return what the engine's recorded steps will have read from the device, one list for each step."""
    reads, compute = [], engine.graphs.logits

    def watched(spans):
        with Recorded() as recorded:
            logits = compute(spans)
        if logits is not None:
            reads.append(recorded.waits)
        return logits

    monkeypatch.setattr(engine.graphs, "logits", watched)
    return reads


def places_of(graphs):
    """Return where segments leave what the next one reads: replayed, they know it by address."""
    return [
        tensor.data_ptr()
        for step in graphs._steps
        for name, tensor in sorted(vars(step).items())
        if isinstance(tensor, torch.Tensor) and name != "logits_BV"
    ]


LIMITS = EngineLimits(slots=2, context_length=40, kv_bytes=1 << 20, page_tokens=4)
NUM_TOKENS = [5, 2]
"""Over the end of a chunk; the second one ends before the first."""


@pytest.mark.parametrize("case", ["scout"], indirect=True)
def test_an_engine_generates_the_tokens_of_transformers_in_steps_that_wait_for_nobody(case, monkeypatch):
    model, golden = case
    transport = model.transport
    engine = Engine(model.decoder, transport, LIMITS)
    monkeypatch.setattr(transport, "dispatch", None)  # nobody calls it: experts are found by address
    reads = watch(engine, monkeypatch)
    expected = golden["greedy_tokens"][0].tolist()
    assert generate(engine, golden, NUM_TOKENS) == [expected[:many] for many in NUM_TOKENS]
    assert reads == [[]] * (max(NUM_TOKENS) - 1)


@pytest.mark.parametrize("case", ["maverick"], indirect=True)
def test_with_experts_elsewhere_a_recorded_step_ends_at_each_dispatch_and_goes_on_after_it(case, monkeypatch):
    model, golden = case
    engine = Engine(model.decoder, LocalTransport(model.run_experts), LIMITS)
    reads, places = watch(engine, monkeypatch), places_of(engine.graphs)
    expected = golden["greedy_tokens"][0].tolist()
    assert generate(engine, golden, NUM_TOKENS) == [expected[:many] for many in NUM_TOKENS]
    assert len(reads) == max(NUM_TOKENS) - 1
    assert places_of(engine.graphs) == places
