"""Which of an expert's holders a router prefers: those nearby, as far as that leaves nobody with more than his part.

If each router sent everything to its nearest holder, one that is alone beside many routers would have their whole load.
So a router's preference is a share for each holder, and the shares of all routers make every holder's load the same.
Zone-aware load balancing, as Envoy does it with zones, here with any distance; computed when the placement changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router.location import Location
from router.spread import Order

_TURNS = 60
"""Turns over which unequal shares are kept: a multiple of many numbers of holders, and none loses much to rounding."""
_NEAR_TOKENS = 64
"""What a hop to a machine nearby costs, in tokens an expert could run meanwhile: some 50 us on a GPU."""
_FAR_TOKENS = 1024
"""The same to another zone, which also costs money: a millisecond."""
_NOTHING = 1e-9


def orders(router_id: str, routers: Mapping[str, Location], holders: Mapping[str, Location]) -> tuple[Order, ...]:
    """Return in which order a router takes the holders of an expert, turn by turn.

    Args:
        router_id: whose.
        routers: all there are with the same load; without this one, distances do not count.
        holders: of one expert, at least one.
    """
    names, own = tuple(holders), routers.get(router_id)
    if own is None:
        return equal_orders(names)
    places = tuple(holders.values())
    shares = fair_shares(tuple(routers.values()), places)[tuple(routers).index(router_id)]
    by_share = sorted(range(len(names)), key=lambda holder: -shares[holder])
    sets = _nested_sets([shares[holder] for holder in by_share])
    if sets.keys() == {len(names)}:
        return equal_orders(names)
    behind = [_FAR_TOKENS if own.is_far_from(each) else _NEAR_TOKENS for each in places]
    taken = dict.fromkeys(sets, 0)
    found: list[Order] = []
    for turn in range(1, _TURNS + 1):
        size = max(sets, key=lambda each: sets[each] * turn - taken[each])  # the set that is most behind its part
        first = taken[size] % size
        taken[size] += 1
        preferred = by_share[first:size] + by_share[:first]
        others = sorted(by_share[size:], key=lambda holder: own.distance_to(places[holder]))
        found.append(
            (*((names[holder], 0) for holder in preferred), *((names[holder], behind[holder]) for holder in others))
        )
    return tuple(found)


def equal_orders(holders: Sequence[str]) -> tuple[Order, ...]:
    """Return the orders in which holders take turns, none of them preferred."""
    return tuple(tuple((holder, 0) for holder in (*holders[first:], *holders[:first])) for first in range(len(holders)))


def fair_shares(routers: Sequence[Location], holders: Sequence[Location]) -> list[list[float]]:
    """Return which part of its load each router gives to each holder: the nearest first, and to all holders the same.

    Routers are reckoned to have the same load, as front doors see to.

    Args:
        routers: where they are, at least one.
        holders: where they are, at least one.

    Returns:
        By router, then by holder. A router's shares sum to 1, a holder's to routers / holders.
    """
    distances = [[router.distance_to(holder) for holder in holders] for router in routers]
    shares = [[0.0] * len(holders) for _ in routers]
    room = [len(routers) / len(holders)] * len(holders)
    for distance in sorted({each for row in distances for each in row}):
        _give(shares, room, [[each == distance for each in row] for row in distances])
    _give(shares, room, [[True] * len(holders) for _ in routers])  # what found those nearby taken meanwhile
    return shares


def _give(shares: list[list[float]], room: list[float], may: list[list[bool]]) -> None:
    """Give what routers have left to holders with room, where they may, as far as there is room."""
    asked = []
    for given, allowed in zip(shares, may, strict=True):
        open_ = [free if may_take else 0.0 for free, may_take in zip(room, allowed, strict=True)]
        left, total = max(1.0 - sum(given), 0.0), sum(open_)
        asked.append([left * each / total if total > _NOTHING else 0.0 for each in open_])
    for holder, free in enumerate(room):
        wanted = sum(row[holder] for row in asked)
        taken = min(1.0, free / wanted) if wanted > _NOTHING else 0.0
        for given, row in zip(shares, asked, strict=True):
            given[holder] += row[holder] * taken
        room[holder] = max(free - wanted * taken, 0.0)


def _nested_sets(shares: Sequence[float]) -> dict[int, float]:
    """Return how often the first 1, 2, ... holders have to share evenly, so that each gets its share.

    Args:
        shares: largest first, that sum to 1.
    """
    smaller = [*shares[1:], 0.0]
    parts = {size: size * (share - next_) for size, (share, next_) in enumerate(zip(shares, smaller, strict=True), 1)}
    return {size: part for size, part in parts.items() if part > 1 / (2 * _TURNS)}
