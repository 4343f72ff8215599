"""Shares a budget of GPUs among deployments by need. A pure function."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

from protos.errors import BadConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Want:
    """What one deployment asks for."""

    wanted: int
    """Replicas it would like; at least `least`."""
    present: int
    """Replicas it has, those that start included."""
    least: int = 0
    """Replicas it cannot do without."""
    cost: int = 1
    """What a replica takes of the budget: GPUs for example; at least 0."""


def share_budget(wants: Mapping[str, Want], budget: int | None) -> dict[str, int]:
    """Return the replicas each deployment may have; together they never cost more than the budget.

    Everyone has its least first. Then everyone keeps what it has and still wants, then the rest is for those that
    lack the largest part of what they want: replicas go where they are missed most, and none is taken from one
    deployment to be given to another that already has as large a part.

    Args:
        wants: by deployment.
        budget: None: no limit.

    Raises:
        BadConfig: not even the least fits.
    """
    if budget is None or sum(want.wanted * want.cost for want in wants.values()) <= budget:
        return {name: want.wanted for name, want in wants.items()}
    shares = {name: want.least for name, want in wants.items()}
    left = budget - sum(want.least * want.cost for want in wants.values())
    if left < 0:
        raise BadConfig(
            f"expected a budget of at least {budget - left}, the least that every deployment needs, found {budget}; "
            "raise it or lower the minima"
        )
    left = _hand_out(wants, shares, {name: min(want.present, want.wanted) for name, want in wants.items()}, left)
    _hand_out(wants, shares, {name: want.wanted for name, want in wants.items()}, left)
    return shares


def _hand_out(wants: Mapping[str, Want], shares: dict[str, int], upto: Mapping[str, int], left: int) -> int:
    """Give replicas one by one to whoever has the smallest part of what it wants; return what is left."""
    queue = [(shares[name] / max(wants[name].wanted, 1), name) for name in wants if shares[name] < upto[name]]
    heapq.heapify(queue)
    while queue:
        _, name = heapq.heappop(queue)
        if wants[name].cost > left:
            continue  # a smaller one may fit
        shares[name] += 1
        left -= wants[name].cost
        if shares[name] < upto[name]:
            heapq.heappush(queue, (shares[name] / wants[name].wanted, name))
    return left
