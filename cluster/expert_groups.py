"""Which experts are deployed together."""

from __future__ import annotations

import itertools

from protos.errors import BadConfig


def group_experts(num_experts: int, num_groups: int | None) -> tuple[tuple[int, ...], ...]:
    """Split the experts into groups of neighbours, as even as can be.

    Args:
        num_experts: of a layer; 0 for a dense model, which has no groups.
        num_groups: how many; None: 2, or 1 when there is one expert only.

    Raises:
        BadConfig: more groups than experts.
    """
    if num_experts == 0:
        return ()
    count = min(2, num_experts) if num_groups is None else num_groups
    if count > num_experts:
        raise BadConfig(
            f"experts.groups: expected at most {num_experts}, one per expert, found {count}; "
            "lower it, or raise experts.replicas_per_group"
        )
    bounds = [num_experts * index // count for index in range(count + 1)]
    return tuple(tuple(range(start, stop)) for start, stop in itertools.pairwise(bounds))
