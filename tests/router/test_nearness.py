"""Which holders of an expert a router prefers, by where everybody is."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from router.location import Location
from router.nearness import equal_orders, fair_shares, orders
from router.spread import spread


def at(machine: str, zone: str = "", clique: str = "") -> Location:
    return Location(machine=machine, domains=(clique, zone))


PLACES = st.lists(
    st.builds(at, st.sampled_from("mnop"), st.sampled_from(["", "a", "b"]), st.sampled_from(["", "x", "y"])),
    min_size=1,
    max_size=6,
)


def preferred(found) -> Counter:
    """Return how often each holder comes first."""
    return Counter(order[0][0] for order in found)


def single_tokens(routers, holders, num: int = 240) -> Counter:
    """Return to whom all routers together send dispatches of one token."""
    found = Counter()
    for router in routers:
        by_expert = {0: orders(router, routers, holders)}
        for turn in range(num):
            ((replica, _),) = spread({0: 1}, by_expert, turn)[0]
            found[replica] += 1
    return found


def test_machines_are_nearest_then_nvlink_domains_then_zones():
    here = at("m", "a", "x")
    others = [here, at("n", "a", "x"), at("n", "a", "y"), at("n", "b", "y"), at("n")]
    assert [here.distance_to(each) for each in others] == [0, 1, 2, 3, 3]
    assert [here.is_far_from(each) for each in others] == [False, False, False, True, False]


def test_what_is_not_known_of_two_is_not_the_same():
    assert Location().distance_to(Location()) == 1
    assert at("m").distance_to(at("n")) == 3


@given(PLACES, PLACES)
@example(
    [at("m"), at("m"), at("m", "a"), at("o"), at("o"), at("o", "", "x")],
    [at("m"), at("n"), at("n", "a"), at("n", "a"), at("n", "a", "x")],
)
@settings(max_examples=60)
def test_no_holder_gets_more_than_another_and_no_router_loses_a_part(routers, holders):
    shares = fair_shares(routers, holders)
    assert all(part >= 0 for row in shares for part in row)
    assert [sum(row) for row in shares] == pytest.approx([1.0] * len(routers))
    assert [sum(column) for column in zip(*shares, strict=True)] == pytest.approx(
        [len(routers) / len(holders)] * len(holders)
    )


@given(PLACES, PLACES)
@settings(max_examples=60)
def test_every_order_has_every_holder_once_and_begins_with_one_that_is_not_behind(routers, holders):
    named = {f"r{number}": place for number, place in enumerate(routers)}
    copies = {f"e{number}": place for number, place in enumerate(holders)}
    for order in orders("r0", named, copies):
        assert sorted(holder for holder, _ in order) == sorted(copies)
        assert order[0][1] == 0


def test_with_a_copy_in_each_zone_no_token_crosses_between_them():
    routers = {"r0": at("m", "a"), "r1": at("n", "b")}
    holders = {"e0": at("o", "a"), "e1": at("p", "b")}
    assert preferred(orders("r0", routers, holders)) == {"e0": 60}
    assert preferred(orders("r1", routers, holders)) == {"e1": 60}


def test_a_copy_beside_many_routers_is_not_sent_more_than_the_others():
    routers = {"r0": at("m"), "r1": at("m"), "r2": at("m"), "r3": at("n")}
    holders = {"e0": at("m"), "e1": at("n")}
    found = single_tokens(routers, holders)
    assert abs(found["e0"] - found["e1"]) <= 0.05 * found.total()
    # Three routers share what one copy can take; each sends it two thirds, the rest goes to the other machine.
    assert preferred(orders("r0", routers, holders)) == {"e0": 40, "e1": 20}
    assert preferred(orders("r3", routers, holders)) == {"e1": 60}


def test_a_router_far_from_all_copies_takes_what_those_nearby_leave():
    routers = {"r0": at("m"), "r1": at("n")}
    holders = {"e0": at("m"), "e1": at("o")}
    assert preferred(orders("r1", routers, holders)) == {"e1": 60}
    found = single_tokens(routers, holders)
    assert found["e0"] == found["e1"]


@given(PLACES, PLACES)
@settings(max_examples=60)
def test_wherever_routers_and_copies_are_no_copy_gets_much_more_than_another(routers, holders):
    copies = {f"e{number}": place for number, place in enumerate(holders)}
    found = single_tokens({f"r{number}": place for number, place in enumerate(routers)}, copies)
    mean = found.total() / len(copies)
    # Rounding to 60 turns: 15 % was the most of 3,600 random ones.
    assert all(abs(found[each] - mean) <= 0.25 * mean for each in copies), found


def test_a_router_alone_shares_among_all_copies_wherever_they_are():
    holders = {"e0": at("m", "a"), "e1": at("n", "b")}
    found = single_tokens({"r0": at("m", "a")}, holders)
    assert found["e0"] == found["e1"]


def test_copies_equally_far_take_turns():
    routers = {"r0": at("m", "a")}
    holders = {"e0": at("n", "a"), "e1": at("o", "a"), "e2": at("p", "a")}
    assert orders("r0", routers, holders) == equal_orders(("e0", "e1", "e2"))


def test_a_large_dispatch_is_shared_with_a_copy_further_away():
    routers = {"r0": at("m"), "r1": at("n")}
    by_expert = {0: orders("r0", routers, {"e0": at("m"), "e1": at("n")})}
    assert spread({0: 20}, by_expert, 0) == {0: (("e0", 20),)}
    assert {replica for replica, _ in spread({0: 500}, by_expert, 0)[0]} == {"e0", "e1"}


def test_where_routers_are_not_known_distances_do_not_count():
    holders = {"e0": at("m", "a"), "e1": at("n", "b")}
    assert orders("r0", {}, holders) == equal_orders(("e0", "e1"))
