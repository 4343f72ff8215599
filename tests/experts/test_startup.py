"""What a replica tells about its start."""

from __future__ import annotations

import threading
import time

import torch

from experts.server import ExpertServer
from experts.startup import StartupClock
from tests.experts.replica_client import WAIT_S, dispatch_of

HIDDEN_ND = torch.ones(2, 32)


def test_phases_add_up_from_the_beginning_of_the_process():
    clock = StartupClock()
    clock.imported()
    clock.opened()
    clock.serving()
    clock.loaded(0.25)
    clock.ready()
    phases = clock.dispatched()
    loaded_s = sum((phases.import_s, phases.open_s, phases.read_s, phases.pack_s))
    assert phases.import_s + phases.open_s <= phases.serves_s <= loaded_s <= phases.ready_s <= phases.first_dispatch_s
    assert phases.pack_s == 3 * phases.read_s
    assert phases.ready_s > time.process_time() * 0.5
    assert phases.started_at_s + phases.ready_s <= time.time() + 0.1
    assert phases.described().startswith("import ")
    assert "first dispatch" in phases.described()


def test_of_the_first_dispatch_and_being_ready_the_later_one_tells_both():
    clock = StartupClock()
    assert clock.dispatched().ready_s is None
    assert clock.ready().first_dispatch_s is not None


def test_a_warm_process_counts_from_when_it_was_given_its_work():
    clock = StartupClock(given_at_s=time.monotonic() - 0.25)
    clock.imported()
    assert 0.25 <= clock.phases.import_s < 5
    assert abs(clock.phases.started_at_s - time.time() + 0.25) < 5
    assert clock.phases.described().startswith("warm process, import ")


def test_a_process_says_what_took_how_long(run, tiny_folder):
    replica = run("--checkpoint", tiny_folder)
    startup = replica.ready["startup"]
    assert 0 < startup["import_s"] < startup["ready_s"]
    assert startup["first_dispatch_s"] is None


def test_the_first_dispatch_is_told_once(held, connect):
    told: list[float] = []
    done = threading.Event()

    def on_first_dispatch() -> None:
        told.append(time.monotonic())
        done.set()

    server = ExpertServer(held, on_first_dispatch=on_first_dispatch)
    server.start()
    client = connect(server.address)
    for number in range(2):
        client.ask(dispatch_of(HIDDEN_ND, {0: 2}, dispatch_id=number))
    assert done.wait(WAIT_S)
    client.close()
    server.stop()
    assert len(told) == 1
