"""Evidence against replicas, in virtual time."""

from __future__ import annotations

import pytest

from router.transport.answer_times import FIRST_HEDGE_S, AnswerTimes, HedgeBudget
from router.transport.ejection import FIRST_PROBE_S, Ejection


@pytest.fixture
def ejection() -> Ejection:
    return Ejection()


def eject(ejection: Ejection, now: float) -> None:
    ejection.lost("a", now)
    assert ejection.lost("a", now)


def test_one_lost_dispatch_may_be_chance(ejection):
    assert not ejection.lost("a", 0.0)
    ejection.won("a", 1.0)
    assert not ejection.lost("a", 2.0)
    assert not ejection.ejected


def test_two_in_a_row_eject(ejection):
    eject(ejection, 0.0)
    assert ejection.ejected == {"a"}
    assert ejection.num_ejections == 1


def test_what_weighs_as_much_as_two_ejects_at_once(ejection):
    assert ejection.lost("a", 0.0, weight=2)


def test_an_ejected_replica_is_probed_after_pauses_that_double(ejection):
    eject(ejection, 10.0)
    probed = []
    for now in (step / 10 for step in range(100, 200)):
        for replica_id in ejection.due(now):
            ejection.probed(replica_id, now)
            probed.append(now)
    assert probed == pytest.approx([10.5, 11.5, 13.5, 17.5])


def test_an_answer_in_time_readmits(ejection):
    eject(ejection, 0.0)
    ejection.won("a", 1.0)
    assert not ejection.ejected
    assert not ejection.due(100.0)


def test_one_that_is_ejected_again_soon_waits_longer(ejection):
    eject(ejection, 0.0)
    ejection.won("a", 1.0)
    eject(ejection, 2.0)
    assert not ejection.due(2.0 + FIRST_PROBE_S)
    assert ejection.due(2.0 + 2 * FIRST_PROBE_S)


def test_one_that_did_well_for_a_minute_begins_anew(ejection):
    eject(ejection, 0.0)
    ejection.won("a", 1.0)
    ejection.won("a", 62.0)
    eject(ejection, 63.0)
    assert ejection.due(63.0 + FIRST_PROBE_S)


def test_a_probe_that_could_not_be_sent_stays_due(ejection):
    eject(ejection, 0.0)
    assert ejection.due(1.0) == ejection.due(1.1) == ["a"]


def test_a_sign_of_life_begins_the_pauses_anew(ejection):
    eject(ejection, 0.0)
    for now in (0.5, 1.5, 3.5):
        ejection.probed("a", now)
    ejection.hurry("a", answered_at=4.0, now=4.1)
    assert not ejection.due(4.1)
    assert ejection.due(4.1 + FIRST_PROBE_S)


def test_what_came_before_the_ejection_is_no_sign_of_life(ejection):
    eject(ejection, 1.0)
    ejection.probed("a", 1.5)
    ejection.hurry("a", answered_at=0.9, now=1.5)
    assert not ejection.due(1.5 + FIRST_PROBE_S)


def test_a_replica_that_always_answers_and_always_late_is_not_hurried_again_and_again(ejection):
    eject(ejection, 0.0)
    num_probes = 0
    for now in (step / 100 for step in range(6000)):
        ejection.hurry("a", answered_at=now, now=now)
        for replica_id in ejection.due(now):
            ejection.probed(replica_id, now)
            num_probes += 1
    assert num_probes <= 14


def test_replicas_that_left_are_forgotten(ejection):
    eject(ejection, 0.0)
    ejection.keep(frozenset({"b"}))
    assert not ejection.ejected


def test_an_answer_is_late_past_what_is_usual_for_its_size():
    times = AnswerTimes()
    assert times.hedge_after_s(1) == FIRST_HEDGE_S
    for _ in range(64):
        times.observe(1, 0.010)
        times.observe(1000, 0.100)
    assert times.hedge_after_s(1) == pytest.approx(0.040)
    assert times.hedge_after_s(1000) == pytest.approx(0.400)
    assert times.hedge_after_s(50) == FIRST_HEDGE_S


def test_a_long_tail_makes_an_answer_late_later():
    times = AnswerTimes()
    for number in range(256):
        times.observe(1, 0.2 if number % 50 == 0 else 0.010)
    assert times.hedge_after_s(1) == pytest.approx(0.3)


def test_what_is_fast_is_not_late_within_a_hiccup():
    times = AnswerTimes()
    for _ in range(64):
        times.observe(1, 0.0002)
    assert times.hedge_after_s(1) == pytest.approx(0.010)


def test_one_in_twenty_may_be_asked_twice_and_some_at_once():
    budget = HedgeBudget()
    at_once = 0
    while budget.can_spend:
        budget.spend()
        at_once += 1
    assert at_once == 16
    for _ in range(19):
        assert not budget.can_spend
        budget.earn()
    budget.earn()
    budget.earn()
    assert budget.can_spend
