"""The forward pass in half precision, against itself in float32 (tests/parity holds float32 to the references)."""

from __future__ import annotations

import pytest
import torch

from protos.errors import NoReplica
from router.forward import Forward
from router.transport.local import LocalTransport
from tests.parity.splits import run_in_splits
from tests.tiny import tiny_decoder

# Bits of a mantissa: 8 of bfloat16, 11 of float16. Logits spread by 1.5; a wrong cast or mask moves them by 1 or more.
TOLERANCE = {torch.bfloat16: 0.7, torch.float16: 0.07}
IDS_BS = torch.randint(3, 96, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num_experts", [1, 3])
@pytest.mark.parametrize("steps", [[40], [1] * 40, [9, 31]], ids=["whole", "1x40", "9+31"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_half_precision_logits_are_near_those_of_float32(dtype, steps, num_experts):
    """Every token visits every expert: a route that rounding changes would hide what is tested."""
    logits = {}
    for kind in (torch.float32, dtype):
        decoder, weights = tiny_decoder(kind, num_experts=num_experts, experts_per_token=num_experts)
        logits[kind] = run_in_splits(Forward(decoder, LocalTransport(weights.run_experts)), IDS_BS, steps)
    assert logits[dtype].dtype == torch.float32
    assert (logits[dtype] - logits[torch.float32]).abs().max() < TOLERANCE[dtype]


class FailingSecondLayer(LocalTransport):
    """Fails the first dispatch of layer 1, and remembers which dispatches were waited for or given up."""

    def __init__(self, run_experts) -> None:
        super().__init__(run_experts)
        self.open: list[int] = []

    def dispatch(self, layer, plan, hidden_ND):
        if layer == 1:
            raise NoReplica("no replica holds expert 3: start one")
        return _Watched(super().dispatch(layer, plan, hidden_ND), self.open)


class _Watched:
    def __init__(self, pending, still_open: list[int]) -> None:
        self._pending = pending
        self._open = still_open
        still_open.append(id(self))

    def wait(self):
        return self._pending.wait()

    num_neighbours = 0

    def give_up(self) -> None:
        if id(self) in self._open:
            self._open.remove(id(self))


def test_a_batch_that_fails_leaves_no_dispatch_of_another_behind():
    decoder, weights = tiny_decoder()
    transport = FailingSecondLayer(weights.run_experts)
    with pytest.raises(NoReplica):
        run_in_splits(Forward(decoder, transport), IDS_BS, [40], num_batches=3)
    assert transport.open == []
