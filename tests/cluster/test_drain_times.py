from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.drain_times import drain_times
from cluster.limits import FrontDoorLimits
from protos.errors import BadConfig


@pytest.mark.parametrize("lame_duck_s", [0.0, 6.0, 30.25])
@pytest.mark.parametrize("longest_s", [0.1, 10.0, 600.0])
def test_derived_times_hold_each_other(longest_s, lame_duck_s):
    drain_times(longest_s, lame_duck_s).check()


def test_the_times_of_the_default_settings():
    limits = FrontDoorLimits()
    times = drain_times(limits.drain_s, limits.lame_duck_s)
    assert (times.shutdown_s, times.drain_s, times.grace_s) == (18.0, 23.0, 38.0)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"grace_s": 23.0}, "terminationGracePeriodSeconds .* more than .* 23 s, found 23 s.* set grace to 38"),
        ({"drain_s": 17.0}, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S .* 18 s, found 17 s.* set drain to 23"),
        ({"longest_s": 13.0}, "graceful_shutdown_timeout_s .* limits.lame_duck_s, 6 s, .* 13 s, found 18 s"),
    ],
)
def test_times_that_cut_something_off_are_refused_by_name(changed, named):
    with pytest.raises(BadConfig, match=named):
        replace(drain_times(10.0, 6.0), **changed).check()
