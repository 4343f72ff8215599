from contextlib import ExitStack

import pytest

from cluster.auth.quota import ANYBODY, Bucket, Caller
from protos.errors import InvalidRequest, PermissionDenied, RateLimited


def test_a_bucket_fills_up_with_time_and_no_further():
    bucket = Bucket(60, now=0)
    bucket.take(60, now=0)
    assert bucket.wait_s(3, now=0) == pytest.approx(3)
    assert bucket.wait_s(3, now=3) == 0
    assert bucket.wait_s(60, now=1000) == 0
    bucket.take(60, now=1000)
    assert bucket.wait_s(1, now=1000) == pytest.approx(1)


def test_more_than_a_bucket_holds_is_let_through_when_it_is_full_and_owed_after():
    bucket = Bucket(60, now=0)
    assert bucket.wait_s(1000, now=0) == 0
    bucket.take(120, now=0)
    assert bucket.wait_s(1, now=0) == pytest.approx(61)


def test_what_was_taken_stays_taken_when_a_bucket_becomes_another_size():
    bucket = Bucket(60, now=0)
    bucket.take(60, now=0)
    bucket.resize(120, now=0)
    assert bucket.wait_s(61, now=0) == pytest.approx(0.5)
    bucket.resize(None, now=0)
    assert bucket.wait_s(10**9, now=0) == 0


def test_requests_beyond_the_quota_are_told_when_to_come_again(clock):
    caller = Caller("alice", requests_per_minute=2, clock=clock)
    for _ in range(2):
        with caller.request():
            pass
    with pytest.raises(RateLimited, match="'alice' to stay within its requests a minute") as caught, caller.request():
        pass
    assert caught.value.retry_after_ms == 30_000
    clock.now += 30
    with caller.request():
        pass


def test_answers_are_paid_for_by_later_prompts(clock):
    caller = Caller("alice", tokens_per_minute=100, clock=clock)
    caller.take_prompt(40)
    caller.take_answer(120)
    with pytest.raises(RateLimited, match="tokens a minute"):
        caller.take_prompt(1)
    clock.now += 60
    caller.take_prompt(1)


def test_requests_at_once_are_counted_until_they_end(clock):
    caller = Caller("alice", streams=2, clock=clock)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(caller.request())
        with pytest.raises(RateLimited, match="2 sequences at once"), caller.request():
            pass
    with caller.request():
        pass


def test_anybody_is_never_refused():
    for _ in range(1000):
        with ANYBODY.request():
            ANYBODY.take_prompt(10**9)
            ANYBODY.take_answer(10**9)


def test_every_choice_of_every_prompt_is_a_stream(clock):
    caller = Caller("alice", streams=4, clock=clock)
    with caller.request(), caller.sequences(3, 0):
        with pytest.raises(RateLimited, match="4 sequences at once"), caller.request(), caller.sequences(2, 0):
            pass
        with caller.request(), pytest.raises(RateLimited), caller.request():
            pass
    with caller.request(), caller.sequences(4, 0):
        pass
    with pytest.raises(InvalidRequest, match="n: expected at most 4"), caller.request(), caller.sequences(5, 0):
        pass


def test_nobody_goes_before_others_whose_key_does_not_say_so(clock):
    caller = Caller("alice", best_priority=-1, clock=clock)
    with caller.sequences(1, -1):
        pass
    with pytest.raises(PermissionDenied, match="priority: expected at least -1"), caller.sequences(1, -2):
        pass
    with ANYBODY.sequences(128, -(2**31)):
        pass
