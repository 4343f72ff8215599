"""How fast a tier is follows what was measured, and a tier that seems slow is tried again."""

from __future__ import annotations

import pytest

from router.kv_tiers.rate import Rate


def test_an_unmeasured_tier_is_tried():
    assert Rate().seconds(10**12) == 0


def test_the_estimate_follows_what_is_measured():
    rate = Rate()
    rate.observe(1000, 1.0)
    assert rate.seconds(500) == 0.5
    for _ in range(40):
        rate.observe(4000, 1.0)
    assert rate.seconds(4000) == pytest.approx(1.0, rel=1e-3)


def test_a_tier_that_is_passed_over_is_thought_better_of_each_time():
    rate = Rate()
    rate.observe(1, 1.0)
    refused = 0
    while rate.seconds(1000) > 10:
        rate.refuse()
        refused += 1
    assert 50 < refused < 200
