"""An engine that is stuck, told from others that give no token: in virtual time."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from protos.errors import ReplicaUnavailable
from router.step_watch import StepWatch
from tests.router.local_engine import local_engine


@dataclass
class ScriptedEngine:
    is_alive: bool = True
    is_working: bool = True
    num_signs: int = 0


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def watch(engine) -> StepWatch:
    return StepWatch(engine, stuck_after_s=10.0)


def look(watch: StepWatch, start_s: int, stop_s: int) -> None:
    for now in range(start_s, stop_s):
        watch.check(float(now))


def test_one_that_works_without_a_sign_is_stuck_after_its_time(watch):
    look(watch, 0, 10)
    with pytest.raises(ReplicaUnavailable, match="within 10 s"):
        watch.check(10.0)


def test_one_that_gives_signs_is_not_stuck_nor_is_it_any_more_once_it_does(watch, engine):
    look(watch, 0, 10)
    engine.num_signs += 1
    look(watch, 10, 20)
    with pytest.raises(ReplicaUnavailable):
        watch.check(20.0)
    engine.num_signs += 1
    watch.check(21.0)


def test_one_without_work_is_not_stuck(watch, engine):
    engine.is_working = False
    look(watch, 0, 100)


def test_a_time_in_which_nobody_could_look_is_not_held_against_it(watch):
    look(watch, 0, 5)
    watch.check(3600.0)
    watch.check(3601.0)


def test_one_whose_loop_ended_is_of_no_use(watch, engine):
    engine.is_alive, engine.is_working = False, False
    with pytest.raises(ReplicaUnavailable, match="ended"):
        watch.check(0.0)


def test_an_engine_works_from_its_first_order_until_it_is_idle_and_ends_with_its_loop():
    with local_engine() as held:
        engine = held.engine
        assert engine.is_alive
        held.transport.gate.clear()
        stream = held.ask((5, 6, 7))
        assert held.transport.waits.wait(30)
        assert engine.is_working
        before = engine.num_signs
        held.transport.gate.set()
        stream.tokens()
        assert engine.num_signs > before
        engine.stop()
        assert not engine.is_alive
