import time

import pytest

from cluster.admission import Admission
from cluster.limits import FrontDoorLimits
from protos.errors import Overloaded


def admission(**limits) -> Admission:
    return Admission(FrontDoorLimits(**limits))


def test_room_is_taken_on_entering_and_given_back_on_leaving():
    door = admission(max_sequences=3)
    with door.admit(2, 10), door.admit(1, 5):
        assert (door.num_sequences, door.num_queued_prompt_tokens) == (3, 15)
    assert (door.num_sequences, door.num_queued_prompt_tokens) == (0, 0)


def test_a_door_is_idle_since_its_last_sequence_ended():
    door = admission()
    time.sleep(0.05)
    since_start_s = door.idle_s
    with door.admit(1, 1):
        with door.admit(1, 1):
            assert door.idle_s == 0
        assert door.idle_s == 0
    assert 0 < door.idle_s < 0.05 <= since_start_s


def test_sequences_over_the_limit_are_refused_with_when_to_retry():
    door = admission(max_sequences=3)
    with door.admit(2, 1), pytest.raises(Overloaded) as refused:
        door.admit(2, 1)
    assert refused.value.retry_after_ms > 0


def test_prompt_tokens_over_the_limit_are_refused_until_they_are_computed():
    door = admission(max_queued_prompt_tokens=10)
    with door.admit(1, 8) as ticket:
        with pytest.raises(Overloaded, match="prompt tokens"):
            door.admit(1, 3)
        ticket.prompt_computed(8)
        with door.admit(1, 3):
            assert door.num_queued_prompt_tokens == 3
    assert door.num_queued_prompt_tokens == 0


def test_a_request_larger_than_the_limits_runs_alone():
    door = admission(max_sequences=1, max_queued_prompt_tokens=1)
    with door.admit(5, 100), pytest.raises(Overloaded):
        door.admit(1, 1)


def test_a_failed_request_gives_its_room_back():
    door = admission()
    with pytest.raises(ValueError, match="inside"), door.admit(1, 1):
        raise ValueError("inside")
    assert door.num_sequences == 0
