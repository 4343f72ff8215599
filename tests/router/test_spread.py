"""spread: who runs how many tokens of which expert."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from router.nearness import equal_orders
from router.spread import SHARED_TOKENS
from router.spread import spread as spread_in_order

REPLICAS = "abcd"
CASES = st.dictionaries(
    st.integers(0, 15),
    st.tuples(st.integers(1, 500), st.lists(st.sampled_from(REPLICAS), min_size=1, unique=True)),
    min_size=1,
)


def spread(token_counts, holders, turn=0):
    """Spread with holders that are all alike."""
    return spread_in_order(token_counts, {expert: equal_orders(tuple(each)) for expert, each in holders.items()}, turn)


def tokens_by_replica(assignment) -> Counter:
    return Counter(
        {
            replica: sum(n for parts in assignment.values() for each, n in parts if each == replica)
            for replica in REPLICAS
        }
    )


@given(CASES, st.integers(0, 9))
def test_every_token_goes_to_a_holder_of_its_expert_once(cases, turn):
    counts = {expert: count for expert, (count, _) in cases.items()}
    holders = {expert: replicas for expert, (_, replicas) in cases.items()}
    assignment = spread(counts, holders, turn)
    assert set(assignment) == set(counts)
    for expert, parts in assignment.items():
        names = [replica for replica, _ in parts]
        assert set(names) <= set(holders[expert])
        assert len(set(names)) == len(names)
        assert all(count > 0 for _, count in parts)
        assert sum(count for _, count in parts) == counts[expert]


def test_an_expert_with_most_of_the_tokens_is_shared_by_its_holders():
    assignment = spread({0: 600, 1: 100, 2: 100, 3: 100}, {0: "ab", 1: "a", 2: "b", 3: "a"})
    found = tokens_by_replica(assignment)
    assert abs(found["a"] - found["b"]) <= 2 * 8


def test_few_tokens_of_an_expert_stay_together():
    counts = {0: 2 * SHARED_TOKENS - 1}
    ((_, count),) = spread(counts, {0: "abcd"})[0]
    assert count == 2 * SHARED_TOKENS - 1


def test_experts_that_may_run_anywhere_spread_over_everybody():
    assignment = spread(dict.fromkeys(range(8), 4), dict.fromkeys(range(8), "abcd"))
    assert sorted(tokens_by_replica(assignment).values()) == [8, 8, 8, 8]


def test_a_replica_with_experts_of_its_own_gets_less_of_the_others():
    assignment = spread({0: 100, 1: 40, 2: 40}, {0: "a", 1: "ab", 2: "ab"})
    assert tokens_by_replica(assignment)["b"] == 80


def test_equal_choices_take_turns():
    first, second, third = (spread({0: 1}, {0: "ab"}, turn) for turn in range(3))
    assert first != second
    assert first == third


def test_a_replica_further_away_is_chosen_once_it_has_so_much_less_to_do():
    order = ((("near", 0), ("far", 64)),)
    small = spread_in_order({0: 10, 1: 10, 2: 10}, dict.fromkeys(range(3), order), 0)
    assert {replica for parts in small.values() for replica, _ in parts} == {"near"}
    ((_, near), (_, far)) = spread_in_order({0: 200}, {0: order}, 0)[0]
    assert (near, far) == (132, 68)
