import io
import sys

from rich.console import Console

from cluster.launch.progress import StartupDisplay
from cluster.startup_board import ReplicaProgress


def loading(done_bytes: int) -> ReplicaProgress:
    return ReplicaProgress(
        replica_id="a", deployment="Experts-0", phase="loading", done_bytes=done_bytes, total_bytes=4 * 1024**2
    )


def show(*, terminal: bool) -> str:
    text = io.StringIO()
    with StartupDisplay(Console(file=text, force_terminal=terminal, width=100)) as display:
        display.phase("Ray")
        display.phase("Replicas")
        display.replicas((loading(1024**2),))
        display.phase("Replicas")
        display.end_phase()
        display.phase("Ports")
    return text.getvalue()


def test_without_a_terminal_each_finished_phase_is_a_line():
    lines = show(terminal=False).splitlines()
    assert [line.split()[1] for line in lines] == ["Ray", "Replicas"]


def test_on_a_terminal_each_replica_has_a_bar_with_its_bytes():
    assert "1.0 MiB of 4.0 MiB" in show(terminal=True)


def test_the_standard_streams_stay_what_they_are():
    before = (sys.stdout, sys.stderr)
    with StartupDisplay(Console(file=io.StringIO(), force_terminal=True)):
        assert (sys.stdout, sys.stderr) == before
