"""Which tokens may be drawn and with what weight, and the draw itself.

Letter: W ranked tokens, likeliest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from router.ranking import likeliest
from router.request import SamplingParams

HEAD_WIDTH = 1024
"""Tokens ranked at first for a row without top_k. A trained model has nearly all its probability there; ranking all
of 202,048 costs 11 ms instead of 0.5 ms (2 vCPU EPYC, one thread, torch 2.13)."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Sampling parameters of some rows, each [B, 1] float64."""

    temperature_B1: Tensor
    top_k_B1: Tensor
    """In [1, V]; V keeps all."""
    top_p_B1: Tensor
    min_p_B1: Tensor
    width: int
    """Tokens to rank at first; no row's top_k is larger unless it keeps all."""
    is_limited: bool
    """Every row's top_k is at most `width`."""

    @classmethod
    def of(cls, params: Sequence[SamplingParams], vocab_size: int, device: torch.device) -> Rules:
        """Gather the parameters of rows. Temperature 0 is the likeliest token: top_k 1 at any temperature."""
        top_ks = [1 if own.temperature == 0 else min(own.top_k or vocab_size, vocab_size) for own in params]
        width = min(vocab_size, max(HEAD_WIDTH if top_k == vocab_size else top_k for top_k in top_ks))
        table = [
            (own.temperature or 1.0, top_k, own.top_p, own.min_p) for own, top_k in zip(params, top_ks, strict=True)
        ]
        table_B4 = torch.tensor(table, dtype=torch.float64).to(device, non_blocking=True)
        temperature_B1, top_k_B1, top_p_B1, min_p_B1 = table_B4.unsqueeze(2).unbind(dim=1)
        return cls(temperature_B1, top_k_B1, top_p_B1, min_p_B1, width, is_limited=max(top_ks) <= width)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The tokens that may be drawn: the first `num_kept_B1` of each row, if they are all among the ranked ones."""

    ids_BW: Tensor
    """[B, W] int64."""
    reached_BW: Tensor
    """[B, W] float64, weight of a token and all before it; the likeliest weighs 1. Constant behind the kept ones."""
    num_kept_B1: Tensor
    """[B, 1] int64, ranked tokens that are kept; at least 1."""
    mass_B1: Tensor
    """[B, 1] float64, weight of all kept tokens, ranked or not; infinite: not known."""
    is_complete_B1: Tensor
    """[B, 1] bool, every kept token is ranked."""


def keep_candidates(logits_BV: Tensor, rules: Rules, width: int) -> Candidates:
    """Find the tokens that may be drawn.

    The probabilities are softmax(z / temperature). Then, each on what the one before left, made to sum to 1 again:

        min_p   keeps tokens at least min_p times as likely as the likeliest
        top_k   keeps the k likeliest
        top_p   keeps the likeliest until their probabilities sum to top_p

    Of equally likely tokens the lower id counts as likelier, so exactly k are kept. All three keep a beginning of the
    ranking, which is why ranking the first `width` tokens is enough unless they are too few (`is_complete_B1`).

    Args:
        logits_BV: [B, V] float32, after penalties.
        rules: per row.
        width: tokens to rank, `rules.width` or V.

    Source: order as vLLM 0.22 documents for `vllm.v1.sample.sampler.Sampler`, step 7.
    """
    ids_BW = likeliest(logits_BV, width)
    scores_BW = logits_BV.gather(1, ids_BW).double()
    best_B1 = scores_BW[:, :1]
    weights_BW = ((scores_BW - best_B1) / rules.temperature_B1).exp_()
    ranks_W = torch.arange(width, device=logits_BV.device)
    in_pool_BW = (weights_BW > 0) & (weights_BW >= rules.min_p_B1) & (ranks_W < rules.top_k_B1)
    weights_BW *= in_pool_BW
    reached_BW = weights_BW.cumsum(dim=-1)

    pool_is_ranked_B1 = ~in_pool_BW[:, -1:] | (rules.top_k_B1 <= width)
    pool_B1 = reached_BW[:, -1:]
    if width < logits_BV.shape[1] and not rules.is_limited:
        pool_B1 = torch.where(pool_is_ranked_B1, pool_B1, _weigh_all(logits_BV, best_B1, rules))

    unbounded = torch.inf
    limit_B1 = torch.where(rules.top_p_B1 < 1, rules.top_p_B1 * pool_B1, unbounded)
    kept_BW = in_pool_BW & (reached_BW - weights_BW < limit_B1)
    num_kept_B1 = kept_BW.sum(dim=-1, keepdim=True).clamp_(min=1)
    is_complete_B1 = pool_is_ranked_B1 | (reached_BW[:, -1:] >= limit_B1)
    mass_B1 = torch.where(
        is_complete_B1,
        reached_BW.gather(1, num_kept_B1 - 1),
        torch.where(rules.top_p_B1 < 1, unbounded, pool_B1),
    )
    return Candidates(ids_BW, reached_BW, num_kept_B1, mass_B1, is_complete_B1)


def draw(candidates: Candidates, uniforms: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Choose one candidate per row: the first whose reached weight exceeds a random part of the whole.

    Float64 throughout: of 200,000 float32 terms the sum would depend on their order by more than a rare token weighs.

    Args:
        candidates: of each row.
        uniforms: per row, in [0, 1).

    Returns:
        Ids [B] int64 and whether each is final [B] bool; where not, the choice lies beyond the ranked tokens.
    """
    device = candidates.mass_B1.device
    uniforms_B1 = torch.tensor(uniforms, dtype=torch.float64).to(device, non_blocking=True).unsqueeze(1)
    target_B1 = uniforms_B1 * candidates.mass_B1
    rank_B1 = (candidates.reached_BW <= target_B1).sum(dim=-1, keepdim=True)
    # Rounding can lift the target of a number next to 1 to the whole weight.
    rank_B1 = torch.minimum(rank_B1, candidates.num_kept_B1 - 1)
    is_final_B1 = candidates.is_complete_B1 | (target_B1 < candidates.reached_BW[:, -1:])
    return candidates.ids_BW.gather(1, rank_B1).squeeze(1), is_final_B1.squeeze(1)


def _weigh_all(logits_BV: Tensor, best_B1: Tensor, rules: Rules) -> Tensor:
    """Return the weight [B, 1] of every token that min_p keeps."""
    weights_BV = ((logits_BV.double() - best_B1) / rules.temperature_B1).exp_()
    weights_BV.masked_fill_(weights_BV < rules.min_p_B1, 0)
    return weights_BV.sum(dim=-1, keepdim=True)
