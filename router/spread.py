"""How the tokens of a dispatch spread over the replicas that hold their experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter

Assignment = dict[int, tuple[tuple[str, int], ...]]
"""By logical expert: (replica, how many of its tokens), which sum to the expert's tokens."""

Order = tuple[tuple[str, int], ...]
"""(replica that may run an expert, how many tokens less than another it must have to do to be chosen all the same)."""

SHARED_TOKENS = 16
"""Fewest tokens of an expert for each of the replicas that share them. Fewer take a replica hardly longer than one
does: reading the weights is what takes the time, and each replica would read them."""
_WEIGHTS_TOKENS = 8
"""What running an expert at all costs, in tokens: reading its weights."""


def spread(token_counts: Mapping[int, int], orders_by_expert: Mapping[int, Sequence[Order]], turn: int) -> Assignment:
    """Give every expert's tokens to its holders so that the busiest replica has as little to do as can be had simply.

    Longest first: an expert goes to the least busy of its holders, or is shared among them if it has many tokens.

    Args:
        token_counts: tokens of each expert of a dispatch, all positive.
        orders_by_expert: replicas that may run it, at least one each, in the order to take of equal ones, turn by turn.
        turn: grows with every dispatch, so that equal choices take turns.
    """
    assignment: Assignment = {}
    loads: dict[str, int] = {}
    choosing: list[int] = []
    for expert, count in token_counts.items():
        orders = orders_by_expert[expert]
        if len(orders[0]) == 1:
            replica = orders[0][0][0]
            assignment[expert] = ((replica, count),)
            loads[replica] = loads.get(replica, 0) + count + _WEIGHTS_TOKENS
        else:
            choosing.append(expert)
    if choosing:
        choosing.sort(key=lambda expert: -token_counts[expert])
        for expert in choosing:
            orders = orders_by_expert[expert]
            parts = _share(token_counts[expert], orders[turn % len(orders)], loads)
            for replica, count in parts:
                loads[replica] = loads.get(replica, 0) + count + _WEIGHTS_TOKENS
            assignment[expert] = parts
    return assignment


def _share(num_tokens: int, order: Order, loads: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """Divide one expert's tokens so that its holders, loads included, come out as even as may be."""
    by_load = sorted([(loads.get(replica, 0) + behind, replica) for replica, behind in order], key=itemgetter(0))
    chosen = by_load[: max(num_tokens // SHARED_TOKENS, 1)]
    while len(chosen) > 1:
        level = (num_tokens + sum(load for load, _ in chosen)) // len(chosen)
        if level - chosen[-1][0] >= SHARED_TOKENS // 2:
            break
        chosen.pop()  # the busiest would get too little to be worth its reading the weights
    if len(chosen) == 1:
        return ((chosen[0][1], num_tokens),)
    counts = [level - load for load, _ in chosen]
    counts[0] += num_tokens - sum(counts)
    return tuple((replica, count) for (_, replica), count in zip(chosen, counts, strict=True))
