"""A layer's routed experts and its shared one, all on one GPU: nobody on the host learns which token visits whom.

many tokens    operators sort them, the expert kernels run
few            a decode step's own path, four launches: add, normalise and ask the gate; route; gate and up; down. The
               shared expert is one more expert there, that all tokens visit
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.gpu.launches import decode_tile, down_launch, gate_up_launch
from models.gpu.linear import GpuLinear
from models.gpu.residual import Addend, Normed, add_norm
from models.gpu.route import most_tiles, route
from models.gpu.swiglu import Block, SwigluPlan, swiglu
from models.gpu.tiles import addresses, tile_table, tile_table_of
from models.gpu.weight import GpuWeight, plain
from models.linear import Linear
from models.linear.plain import PlainLinear
from models.llama4.mlp import Mlp


@dataclass(frozen=True, slots=True)
class ResidentExperts:
    """What a layer's feed-forward needs; the weights must stay for as long as this is used."""

    experts: Tensor
    """[E, 4] int64: addresses of gate-up, its scales, down, its scales of every expert."""
    like: Block
    """One of them: all are of its form and shape."""
    shared: Mlp
    num_choices: int
    """Experts per token [K]."""

    @classmethod
    def of(cls, experts: Mapping[int, Mlp], shared: Mlp, num_choices: int) -> ResidentExperts | None:
        """Return a layer's experts; None if they are not all of one form, or one of them is not a GPU's.

        Args:
            experts: all of the layer.
            shared: its shared one.
            num_choices: experts per token.
        """
        blocks = [block_of(experts[expert]) for expert in sorted(experts)]
        held = [block for block in blocks if block is not None]
        if len(held) < len(blocks) or len({(block.gate_up.form, block.down.form) for block in held}) != 1:
            return None
        lines = [(*addresses(block.gate_up), *addresses(block.down)) for block in held]
        table = torch.tensor(lines, dtype=torch.int64).to(held[0].gate_up.values.device)
        return cls(table, held[0], shared, num_choices)

    @property
    def num_experts(self) -> int:
        """E."""
        return self.experts.shape[0]

    def run(self, normed_TD: Tensor, expert_ids_TK: Tensor, scores_TK: Tensor) -> tuple[Tensor, Tensor]:
        """Run any number of tokens through the routed experts they chose.

        Args:
            normed_TD: [T, D], of which each expert gets its tokens, multiplied by their scores.
            expert_ids_TK: [T, K] int64.
            scores_TK: [T, K] in the dtype of the tokens.

        Returns:
            The experts' outputs [T · K, D], sorted by expert, and [T · K] int64, which choice of `expert_ids_TK`,
            flattened, each is of.
        """
        ids_N = expert_ids_TK.reshape(-1)
        slots_N = ids_N.argsort(stable=True)
        counts_E = ids_N.new_zeros(self.num_experts).scatter_add_(0, ids_N, torch.ones_like(ids_N))
        scores_N1 = scores_TK.reshape(-1, 1).index_select(0, slots_N)
        x_ND = normed_TD.index_select(0, slots_N // self.num_choices) * scores_N1
        # One of them may get all; how to cut is chosen for what it will probably get.
        expected = -(-2 * len(ids_N) // self.num_experts)
        gate_up, down = gate_up_launch(self.like.gate_up.form, expected), down_launch(self.like.down.form, expected)
        gate_up_tiles, down_tiles = (
            tile_table_of(each, counts_E, launch.tokens, most_tiles(len(ids_N), self.num_experts, launch.tokens))
            for each, launch in zip(self.experts.split(2, dim=1), (gate_up, down), strict=True)
        )
        return swiglu(x_ND, SwigluPlan(self.like, gate_up_tiles, down_tiles, gate_up, down)), slots_N


class DecodeExperts:
    """The feed-forward of a layer for a fixed number of tokens, some of which may not be there.

    Args:
        experts: of the layer.
        num_tokens: T.
    """

    def __init__(self, experts: ResidentExperts, num_tokens: int) -> None:
        self._experts = experts
        self._num_choices = num_tokens * experts.num_choices
        self._tile = tile = decode_tile(self._num_choices, experts.num_experts)
        shared = _like(block_of(experts.shared), experts.like)
        self._is_shared_apart = shared is None
        self._num_routed_tiles = num_tiles = most_tiles(self._num_choices, experts.num_experts, tile)
        # Lines that a step does not need name some expert, whichever it was before.
        gate_up, down = (
            torch.cat((first.expand(num_tiles, 2), first.new_zeros(num_tiles, 2)), dim=1)
            for first in experts.experts[0].split(2)
        )
        if shared is not None:
            # Its tokens lie behind those of the others.
            gate_up, down = (
                torch.cat((table, _shifted(tile_table([weight], [num_tokens], tile), self._num_choices)))
                for table, weight in ((gate_up, shared.gate_up), (down, shared.down))
            )
        like = experts.like
        launches = gate_up_launch(like.gate_up.form, tile), down_launch(like.down.form, tile)
        assert all(launch.tokens == tile for launch in launches)
        self._plan = SwigluPlan(like, gate_up, down, *launches)

    def num_visited(self) -> int:
        """Return how many routed experts the last step visited. Waits for the device."""
        gate_up = self._plan.gate_up_tiles[: self._num_routed_tiles]
        return len(set(gate_up[gate_up[:, 3] > 0, 0].tolist()))

    def __call__(
        self, hidden_TD: Tensor, addend: Addend, norm_D: Tensor, eps: float, gate_ED: Tensor, num_there: Tensor
    ) -> tuple[Normed, Addend]:
        """Add to the residual stream, and return it with what the experts add to it next.

        Args:
            hidden_TD: [T, D], the residual stream.
            addend: of the layer's attention.
            norm_D: [D], of the norm before the experts.
            eps: of that.
            gate_ED: [E, D].
            num_there: [1] int32: tokens that are there, the first ones.
        """
        num_choices, plan = self._num_choices, self._plan
        x_ND = hidden_TD.new_empty(num_choices + hidden_TD.shape[0], hidden_TD.shape[1])
        normed = add_norm(hidden_TD, addend, norm_D, eps, gate_ED=gate_ED, normed_TD=x_ND[num_choices:])
        assert normed.logits_TE is not None
        rows_TK = route(
            normed.logits_TE,
            num_there,
            normed.normed_TD,
            self._experts.experts,
            x_ND,
            plan.gate_up_tiles,
            plan.down_tiles,
            num_choices=self._experts.num_choices,
            tile=self._tile,
        )
        outputs_ND = swiglu(x_ND, plan)
        base_TD = self._experts.shared(normed.normed_TD) if self._is_shared_apart else outputs_ND[num_choices:]
        return normed, Addend(base_TD, outputs_ND, rows_TK)


def block_of(mlp: Mlp) -> Block | None:
    """Return an MLP's weights as the kernels read them, without a copy; None if they lie otherwise."""
    gate_up, down = _weight_of(mlp.gate_up), _weight_of(mlp.down)
    return Block(gate_up, down) if gate_up is not None and down is not None else None


def _weight_of(linear: Linear) -> GpuWeight | None:
    if isinstance(linear, GpuLinear):
        return linear.weight
    if not isinstance(linear, PlainLinear):
        return None
    held = plain(linear.weight_OI)
    # A copy would be gone when only its address is left.
    return held if held.values.data_ptr() == linear.weight_OI.data_ptr() else None


def _like(block: Block | None, like: Block) -> Block | None:
    """Return a block if it can be one of those in a launch."""
    if block is None:
        return None
    pairs = ((block.gate_up, like.gate_up), (block.down, like.down))
    is_like = all(a.form == b.form and (a.num_outputs, a.num_inputs) == (b.num_outputs, b.num_inputs) for a, b in pairs)
    return block if is_like else None


def _shifted(tiles: Tensor, num_rows: int) -> Tensor:
    """Return tiles whose rows begin so many later."""
    return tiles + torch.tensor([0, 0, num_rows, 0], device=tiles.device)
