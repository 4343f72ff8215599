"""Figures that are settings or constants elsewhere are the same there."""

from __future__ import annotations

from cluster.config import RouterSettings
from cluster.planner import assumptions
from cluster.planner.assumptions import Assumption
from context.segments import PAGE_TOKENS

ALL = [each for each in vars(assumptions).values() if isinstance(each, Assumption)]


def test_pages_and_steps_are_those_that_are_deployed():
    assert assumptions.SHARD_PAGE_TOKENS.value == PAGE_TOKENS
    assert assumptions.CPU_STEP_TOKENS.value == RouterSettings().step_tokens


def test_every_figure_that_is_no_guess_says_where_it_comes_from():
    assert len(ALL) > 10
    for each in ALL:
        assert each.source or each.origin == "guess", each.what
