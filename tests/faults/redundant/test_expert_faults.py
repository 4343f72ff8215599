"""Parts of a running Herd are killed and hang under load: no stream notices, and everything comes back."""

from __future__ import annotations

import pytest

from benchmarks.chaos.faults import Kill, Stop
from benchmarks.chaos.processes import Part

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("part", [Part.CONTROLLER, Part.DIRECTORY, Part.EXPERT], ids=lambda part: part.label)
def test_no_stream_notices_a_kill_and_everything_comes_back(trial, part):
    victim = trial.one_of(part)
    Kill(victim.pid).inject()
    trial.wait_for_tokens(300)
    trial.wait_whole(victim.pid)
    differences = trial.finish()
    assert differences.is_clean, differences.describe()


def test_no_stream_notices_that_one_of_two_holders_hangs(trial):
    fault = Stop(trial.one_of(Part.EXPERT).pid)
    fault.inject()
    try:
        # More than the streams under way have left: all of them end, and others begin, while it hangs.
        trial.wait_for_tokens(800)
    finally:
        fault.lift()
    trial.wait_whole()
    differences = trial.finish()
    assert differences.is_clean, differences.describe()
