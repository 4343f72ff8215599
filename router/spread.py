"""How the tokens of a dispatch spread over the replicas that hold their experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Assignment = dict[int, tuple[tuple[str, int], ...]]
"""By logical expert: (replica, how many of its tokens), which sum to the expert's tokens."""

SHARED_TOKENS = 16
"""Fewest tokens of an expert for each of the replicas that share them. Fewer take a replica hardly longer than one
does: reading the weights is what takes the time, and each replica would read them."""
_WEIGHTS_TOKENS = 8
"""What running an expert at all costs, in tokens: reading its weights."""


def spread(
    token_counts: Mapping[int, int], holders_by_expert: Mapping[int, Sequence[str]], turn: int = 0
) -> Assignment:
    """Give every expert's tokens to its holders so that the busiest replica has as little to do as can be had simply.

    Longest first: an expert goes to the least busy of its holders, or is shared among them if it has many tokens.

    Args:
        token_counts: tokens of each expert of a dispatch, all positive.
        holders_by_expert: replicas that may run it, at least one each.
        turn: grows with every dispatch, so that equal choices take turns.
    """
    assignment: Assignment = {}
    loads: dict[str, int] = {}
    choosing: list[int] = []
    for expert, count in token_counts.items():
        holders = holders_by_expert[expert]
        if len(holders) == 1:
            assignment[expert] = ((holders[0], count),)
            loads[holders[0]] = loads.get(holders[0], 0) + count + _WEIGHTS_TOKENS
        else:
            choosing.append(expert)
    if choosing:
        choosing.sort(key=lambda expert: -token_counts[expert])
        for expert in choosing:
            holders = holders_by_expert[expert]
            first = turn % len(holders)
            parts = _share(token_counts[expert], [*holders[first:], *holders[:first]], loads)
            for replica, count in parts:
                loads[replica] = loads.get(replica, 0) + count + _WEIGHTS_TOKENS
            assignment[expert] = parts
    return assignment


def _share(num_tokens: int, holders: Sequence[str], loads: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """Divide one expert's tokens so that its holders, loads included, come out as even as may be."""
    by_load = sorted(holders, key=lambda replica: loads.get(replica, 0))
    chosen = by_load[: max(num_tokens // SHARED_TOKENS, 1)]
    while len(chosen) > 1:
        level = (num_tokens + sum(loads.get(replica, 0) for replica in chosen)) // len(chosen)
        if level - loads.get(chosen[-1], 0) >= SHARED_TOKENS // 2:
            break
        chosen.pop()  # the busiest would get too little to be worth its reading the weights
    if len(chosen) == 1:
        return ((chosen[0], num_tokens),)
    counts = [level - loads.get(replica, 0) for replica in chosen]
    counts[0] += num_tokens - sum(counts)
    return tuple(zip(chosen, counts, strict=True))
