from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.drain_times import drain_times
from protos.errors import BadConfig


@pytest.mark.parametrize("longest_s", [0.1, 10.0, 600.0])
def test_derived_times_hold_each_other(longest_s):
    drain_times(longest_s).check()


def test_the_defaults_are_what_the_chart_computes():
    times = drain_times(10.0)
    assert (times.shutdown_s, times.drain_s, times.grace_s) == (12.0, 17.0, 32.0)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"grace_s": 17.0}, "terminationGracePeriodSeconds .* more than .* 17 s, found 17 s.* set grace to 32"),
        ({"drain_s": 11.0}, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S .* 12 s, found 11 s.* set drain to 17"),
        ({"longest_s": 13.0}, "graceful_shutdown_timeout_s .* 13 s, found 12 s"),
    ],
)
def test_times_that_cut_something_off_are_refused_by_name(changed, named):
    with pytest.raises(BadConfig, match=named):
        replace(drain_times(10.0), **changed).check()
