"""The engine, with a tiny random model and its experts in this process."""

from __future__ import annotations

import os
import queue
import threading
from dataclasses import replace

import pytest
import torch

from protos import errors
from protos.channel import MAX_MESSAGE_BYTES
from router.acceptance import check_limits
from router.engine import Engine
from router.forward import Forward
from router.kv_cache.layout import CacheLayout
from router.limits import MOST_DISPATCH_BYTES, EngineLimits
from router.request import Ended, GenerationRequest, PromptDone, SamplingParams, TokenChosen
from router.transport.local import LocalTransport
from tests.parity.splits import run_in_splits
from tests.tiny import TINY, tiny_decoder

CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0.0)
WAIT_S = 30


class Stream:
    """Collects a sequence's events."""

    def __init__(self) -> None:
        self.events: queue.Queue = queue.Queue()

    def __call__(self, event) -> None:
        self.events.put(event)

    def next(self):
        return self.events.get(timeout=WAIT_S)

    def rest(self) -> list:
        found = [self.next()]
        while not isinstance(found[-1], Ended):
            found.append(self.next())
        return found

    def tokens(self) -> list[int]:
        return [event.token_id for event in self.rest() if isinstance(event, TokenChosen)]


class GatedTransport(LocalTransport):
    """Holds every dispatch until the test opens the gate, so that a test sees the engine mid-step."""

    def __init__(self, run_experts) -> None:
        super().__init__(run_experts)
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.failure: errors.ServingError | None = None

    def dispatch(self, layer, plan, hidden_ND):
        self.entered.set()
        assert self.gate.wait(WAIT_S)
        if self.failure:
            raise self.failure
        return super().dispatch(layer, plan, hidden_ND)


class WaitingTransport(GatedTransport):
    """Waits as a transport does whose replicas are gone: it asks the step loop again and again."""

    lacking = None

    def dispatch(self, layer, plan, hidden_ND):
        self.entered.set()
        while not self.gate.wait(0.01):
            self.on_wait()
        return super().dispatch(layer, plan, hidden_ND)


class DyingTransport(LocalTransport):
    """Ends the thread that dispatches."""

    def dispatch(self, layer, plan, hidden_ND):
        raise SystemExit


def limits(**changes) -> EngineLimits:
    return EngineLimits(**{"context_length": 128, "kv_bytes": 10_000_000, "slots": 4, "step_tokens": 16} | changes)


@pytest.fixture
def start_engine():
    started: list[Engine] = []

    def start(transport_kind=LocalTransport, **changes):
        decoder, weights = tiny_decoder()
        transport = transport_kind(weights.run_experts)
        engine = Engine(decoder, transport, limits(**changes))
        engine.start()
        started.append(engine)
        return engine, transport

    yield start
    for engine in started:
        if isinstance(transport := engine._forward.transport, GatedTransport):
            transport.gate.set()
        engine.stop()


def ask(engine: Engine, prompt=(5, 6, 7), request_id="one", max_tokens=8, **fields) -> Stream:
    stream = Stream()
    fields.setdefault("sampling", GREEDY)
    engine.submit(
        GenerationRequest(request_id=request_id, prompt_ids=tuple(prompt), max_tokens=max_tokens, **fields), stream
    )
    return stream


def reference_tokens(prompt, num_tokens: int) -> list[int]:
    """Generate greedily without a cache: the whole sequence anew for every token."""
    decoder, weights = tiny_decoder()
    forward = Forward(decoder, LocalTransport(weights.run_experts))
    ids = list(prompt)
    for _ in range(num_tokens):
        ids.append(int(run_in_splits(forward, [ids], [len(ids)])[0, -1].argmax()))
    return ids[len(prompt) :]


def test_tokens_equal_those_computed_without_a_cache_across_chunks(start_engine):
    engine, _ = start_engine()
    prompt = tuple(range(3, 24))
    assert ask(engine, prompt, max_tokens=20).tokens() == reference_tokens(prompt, 20)


def test_sequences_generated_together_equal_those_generated_alone(start_engine):
    engine, _ = start_engine()
    prompts = [tuple(range(low, low + length)) for low, length in ((3, 5), (10, 40), (20, 1), (30, 17), (50, 9))]
    streams = [ask(engine, prompt, f"r{i}", 12) for i, prompt in enumerate(prompts)]
    assert [stream.tokens() for stream in streams] == [reference_tokens(prompt, 12) for prompt in prompts]


def test_a_seeded_sequence_is_the_same_alone_and_in_company(start_engine):
    engine, _ = start_engine()
    sampled = SamplingParams(temperature=1.0, seed=11)
    alone = ask(engine, request_id="alone", sampling=sampled, max_tokens=30).tokens()
    company = [ask(engine, (9, i), f"c{i}", 30, sampling=SamplingParams(seed=i)) for i in range(3)]
    again = ask(engine, request_id="again", sampling=sampled, max_tokens=30).tokens()
    assert alone == again
    assert len({tuple(stream.tokens()) for stream in company}) == 3


def test_events_come_in_order_and_end_once(start_engine):
    engine, _ = start_engine()
    events = ask(engine, max_tokens=3).rest()
    assert [type(event) for event in events] == [PromptDone, TokenChosen, TokenChosen, TokenChosen, Ended]
    assert events[-1].reason == "length"


def test_a_stop_token_ends_the_sequence_and_is_not_emitted(start_engine):
    engine, _ = start_engine()
    expected = reference_tokens((5, 6, 7), 12)
    stop = expected[6]
    events = ask(engine, max_tokens=12, stop_ids=frozenset([stop])).rest()
    assert [event.token_id for event in events[1:-1]] == expected[: expected.index(stop)]
    assert events[-1].reason == "stop"


def test_prompt_logprobs_score_every_prompt_token_even_when_the_prompt_takes_several_steps(start_engine):
    engine, _ = start_engine()
    prompt = tuple(range(3, 40))
    done = ask(engine, prompt, prompt_logprobs=2, max_tokens=1).next()
    decoder, weights = tiny_decoder()
    logits_TV = run_in_splits(Forward(decoder, LocalTransport(weights.run_experts)), [prompt], [len(prompt)])[0]
    expected = logits_TV.log_softmax(-1)[range(len(prompt) - 1), prompt[1:]]
    assert len(done.logprobs) == len(prompt)
    assert done.logprobs[0].logprob == 0
    torch.testing.assert_close(torch.tensor([t.logprob for t in done.logprobs[1:]]), expected, atol=1e-5, rtol=0)
    assert all(len(t.top) == 2 for t in done.logprobs[1:])


def test_a_cancelled_sequence_frees_its_slot_and_emits_nothing_more(start_engine):
    engine, transport = start_engine(GatedTransport)
    stream = ask(engine, max_tokens=100)
    assert transport.entered.wait(WAIT_S)
    engine.cancel("one")
    transport.gate.set()
    after = ask(engine, request_id="two", max_tokens=1)
    after.rest()
    assert wait_for_load(engine, lambda load: load.running == 0).kv_used_bytes == 0
    assert stream.events.qsize() <= 2  # the prompt and the token of the step that was under way


def test_a_request_submitted_after_a_cancellation_of_its_name_is_not_cancelled(start_engine):
    engine, transport = start_engine(GatedTransport)
    first = ask(engine, request_id="running")
    assert transport.entered.wait(WAIT_S)
    cancelled = ask(engine, request_id="twice")
    engine.cancel("twice")
    second = ask(engine, request_id="twice")
    transport.gate.set()
    assert second.rest()[-1].reason == first.rest()[-1].reason == "length"
    assert cancelled.events.empty()


def test_a_sequence_cancelled_while_its_step_waits_is_free_before_the_wait_ends(start_engine):
    engine, transport = start_engine(WaitingTransport)
    stream = ask(engine, max_tokens=100)
    assert transport.entered.wait(WAIT_S)
    assert engine.load().running == 1
    engine.cancel("one")
    load = wait_for_load(engine, lambda load: load.running == 0)
    assert load.kv_used_bytes == 0
    assert not transport.gate.is_set()
    assert stream.events.empty()


def test_a_sequence_is_late_while_its_step_waits_and_its_neighbour_goes_on(start_engine):
    engine, transport = start_engine(WaitingTransport, slots=2)
    neighbour = ask(engine, request_id="neighbour", max_tokens=12)
    assert transport.entered.wait(WAIT_S)
    late = [ask(engine, request_id=f"late{i}", timeout_s=0.1) for i in range(2)]  # the second one has no slot
    assert all(isinstance(stream.rest()[-1].error, errors.DeadlineExceeded) for stream in late)
    assert not transport.gate.is_set()
    transport.gate.set()
    assert neighbour.tokens() == reference_tokens((5, 6, 7), 12)


def test_neighbours_of_a_sequence_that_leaves_while_their_step_waits_get_their_own_tokens(start_engine):
    engine, transport = start_engine(WaitingTransport)
    transport.gate.set()
    streams = {name: ask(engine, prompt, name, 100) for name, prompt in (("a", (5, 6, 7)), ("b", (9, 8)), ("c", (4,)))}
    wait_for_load(engine, lambda load: load.generated_tokens > 6)
    transport.gate.clear()
    transport.entered.clear()
    assert transport.entered.wait(WAIT_S)
    engine.cancel("b")
    wait_for_load(engine, lambda load: load.running == 2)
    transport.gate.set()
    assert streams["a"].tokens() == reference_tokens((5, 6, 7), 100)
    assert streams["c"].tokens() == reference_tokens((4,), 100)


def test_a_late_sequence_ends_with_deadline_exceeded(start_engine):
    engine, transport = start_engine(GatedTransport)
    stream = ask(engine, max_tokens=100, timeout_s=0.01)
    threading.Timer(0.05, transport.gate.set).start()
    last = stream.rest()[-1]
    assert isinstance(last.error, errors.DeadlineExceeded)


def test_waiting_requests_are_bounded(start_engine):
    engine, transport = start_engine(GatedTransport, slots=1, max_waiting=2)
    ask(engine, request_id="running")
    assert transport.entered.wait(WAIT_S)
    waiting = [ask(engine, request_id=f"waiting{i}") for i in range(2)]
    with pytest.raises(errors.Overloaded) as refused:
        ask(engine, request_id="refused")
    assert refused.value.retry_after_ms > 0
    transport.gate.set()
    assert all(stream.rest()[-1].reason == "length" for stream in waiting)


def test_waiting_requests_are_bounded_while_a_step_runs(start_engine):
    engine, transport = start_engine(WaitingTransport, slots=1, max_waiting=2)
    ask(engine, request_id="running")
    assert transport.entered.wait(WAIT_S)
    for i in range(2):
        ask(engine, request_id=f"waiting{i}")
    wait_for_load(engine, lambda load: load.waiting == 2)
    with pytest.raises(errors.Overloaded):
        ask(engine, request_id="refused")


def test_an_engine_that_lets_nothing_wait_serves_what_has_a_slot(start_engine):
    engine, transport = start_engine(GatedTransport, slots=1, max_waiting=0)
    first = ask(engine, request_id="first")
    with pytest.raises(errors.Overloaded):
        ask(engine, request_id="refused")
    transport.gate.set()
    assert first.rest()[-1].reason == "length"
    for i in range(5):  # a slot is free as soon as its last sequence's end is known
        assert ask(engine, request_id=f"next{i}", max_tokens=1).rest()[-1].reason == "length"


def test_load_counts_what_was_submitted_during_a_step(start_engine):
    engine, transport = start_engine(GatedTransport, slots=1)
    ask(engine, request_id="running")
    assert transport.entered.wait(WAIT_S)
    ask(engine, (5, 6, 7, 8), request_id="waiting")
    load = engine.load()
    assert (load.running, load.waiting, load.queued_prompt_tokens) == (1, 1, 7)


def test_load_is_zero_when_nothing_runs(start_engine):
    engine, _ = start_engine()
    for i in range(20):
        ask(engine, request_id=f"ended{i}", max_tokens=1).rest()
        assert engine.load().running == engine.load().waiting == 0
    ask(engine, request_id="cancelled", max_tokens=100).next()
    engine.cancel("cancelled")
    load = wait_for_load(engine, lambda load: load.running == 0)
    assert (load.waiting, load.queued_prompt_tokens, load.kv_used_bytes) == (0, 0, 0)


def test_sequences_wait_for_cache_instead_of_failing(start_engine):
    one = CacheLayout(TINY, "float32").sequence_bytes(3 + 8)
    engine, _ = start_engine(kv_bytes=one)
    streams = [ask(engine, request_id=f"r{i}") for i in range(3)]
    assert all(stream.rest()[-1].reason == "length" for stream in streams)


def test_a_failed_step_ends_its_sequences_with_the_error_and_spares_later_ones(start_engine):
    engine, transport = start_engine(GatedTransport)
    transport.failure = errors.NoReplica("no replica holds expert 3: start one")
    stream = ask(engine)
    transport.gate.set()
    assert stream.rest()[-1].error is transport.failure
    transport.failure = None
    assert ask(engine, request_id="two").rest()[-1].reason == "length"


def test_a_sequence_whose_time_runs_out_without_an_expert_is_told_which_one(start_engine):
    engine, transport = start_engine(WaitingTransport)
    transport.lacking = errors.NoReplica("no replica holds expert 3: start one")
    ended = ask(engine, timeout_s=1.0).rest()[-1]
    assert isinstance(ended.error, errors.NoReplica)
    assert "expert 3" in ended.error.message
    transport.lacking = None
    transport.gate.set()
    assert ask(engine, request_id="two").rest()[-1].reason == "length"


def test_an_error_that_is_kept_keeps_no_cache(start_engine):
    engine, transport = start_engine(GatedTransport)
    transport.failure = errors.NoReplica("no replica holds expert 3: start one")
    transport.gate.set()
    assert ask(engine).rest()[-1].error.__traceback__ is None


def test_a_receiver_that_raises_ends_its_own_sequence_only(start_engine):
    engine, transport = start_engine(GatedTransport)
    transport.gate.set()

    def broken(event):
        raise RuntimeError("the receiver is gone")

    before = ask(engine, request_id="before", max_tokens=1)
    engine.submit(GenerationRequest(request_id="broken", prompt_ids=(5,), max_tokens=100, sampling=GREEDY), broken)
    after = ask(engine, request_id="after", max_tokens=20)
    for stream in (before, after):
        assert [event.reason for event in stream.rest() if isinstance(event, Ended)] == ["length"]
        assert stream.events.empty()
    wait_for_load(engine, lambda load: load.running == 0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_whose_loop_dies_ends_every_sequence_and_takes_no_more(start_engine):
    engine, _ = start_engine(DyingTransport, slots=1)
    streams = [ask(engine, request_id="running"), Stream()]
    try:
        streams[1] = ask(engine, request_id="waiting")
    except errors.ReplicaUnavailable:
        streams.pop()
    assert all(isinstance(stream.rest()[-1].error, errors.ReplicaUnavailable) for stream in streams)
    engine.stop()
    with pytest.raises(errors.ReplicaUnavailable):
        ask(engine, request_id="late")


def test_stopping_does_not_wait_for_replicas_that_a_step_waits_for(start_engine):
    engine, transport = start_engine(WaitingTransport, slots=1)
    streams = [ask(engine, request_id=f"r{i}") for i in range(2)]
    assert transport.entered.wait(WAIT_S)
    engine.stop()
    assert not transport.gate.is_set()
    assert all(isinstance(stream.rest()[-1].error, errors.ReplicaUnavailable) for stream in streams)


def test_stopping_an_engine_that_never_started_ends_what_was_submitted():
    decoder, weights = tiny_decoder()
    engine = Engine(decoder, LocalTransport(weights.run_experts), limits())
    stream = ask(engine)
    engine.stop()
    assert isinstance(stream.next().error, errors.ReplicaUnavailable)


def test_stopping_ends_running_and_waiting_sequences(start_engine):
    engine, transport = start_engine(GatedTransport, slots=1)
    streams = [ask(engine, request_id=f"r{i}") for i in range(2)]
    assert transport.entered.wait(WAIT_S)
    threading.Timer(0.05, transport.gate.set).start()
    engine.stop()
    assert all(isinstance(stream.rest()[-1].error, errors.ReplicaUnavailable) for stream in streams)
    with pytest.raises(errors.ReplicaUnavailable):
        ask(engine, request_id="late")


@pytest.mark.parametrize(
    ("fields", "kind", "says"),
    [
        ({"prompt": ()}, errors.InvalidRequest, "at least one token"),
        ({"prompt": (96,)}, errors.InvalidRequest, r"\[0, 96\), found 96"),
        ({"prompt": (-1,)}, errors.InvalidRequest, "found -1"),
        ({"max_tokens": 0}, errors.InvalidRequest, "max_tokens"),
        ({"max_tokens": 126}, errors.ContextTooLong, r"3 \+ 126"),
        ({"sampling": SamplingParams(temperature=float("nan"))}, errors.InvalidRequest, "temperature"),
        ({"logprobs": -1}, errors.InvalidRequest, "logprobs"),
        ({"prompt_logprobs": -1}, errors.InvalidRequest, "prompt_logprobs"),
        ({"stop_ids": frozenset([1000])}, errors.InvalidRequest, "stop token ids"),
        ({"num_replayed": 3}, errors.InvalidRequest, r"num_replayed in \[0, 3\)"),
        ({"num_replayed": -1}, errors.InvalidRequest, "found -1"),
    ],
)
def test_a_request_that_cannot_work_is_refused_with_the_reason(start_engine, fields, kind, says):
    engine, _ = start_engine()
    with pytest.raises(kind, match=says):
        ask(engine, **fields)
    assert engine.load().running == engine.load().waiting == 0


def test_limits_that_cannot_work_are_refused():
    decoder, weights = tiny_decoder()
    with pytest.raises(errors.BadConfig, match="step_tokens"):
        Engine(decoder, LocalTransport(weights.run_experts), limits(slots=32, step_tokens=16))


def test_a_dispatch_has_to_fit_a_message_unless_the_experts_are_in_the_process():
    many = limits(step_tokens=2**20)
    layout = many.layout(TINY, "float32")
    with pytest.raises(errors.BadConfig, match="a step's dispatch within"):
        check_limits(many, layout, torch.float32)
    check_limits(replace(many, experts_in_process=True), layout, torch.float32)
    assert MOST_DISPATCH_BYTES == MAX_MESSAGE_BYTES // 2


def wait_for_load(engine: Engine, holds):
    """Return the first load for which `holds`; the load is published after each step, so ask until it is."""
    deadline = threading.Event()
    timer = threading.Timer(WAIT_S, deadline.set)
    timer.start()
    while not deadline.is_set():
        if holds(load := engine.load()):
            timer.cancel()
            return load
        deadline.wait(0.005)
    raise AssertionError(f"load is {engine.load()}")


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="Linux has that")
@pytest.mark.parametrize("idle_priority", [False, True])
def test_a_step_loop_may_compute_on_idle_cores_only(start_engine, idle_priority):
    engine, _ = start_engine(idle_priority=idle_priority)
    stream = Stream()
    engine.submit(GenerationRequest(request_id="a", prompt_ids=(1, 2), max_tokens=1, sampling=GREEDY), stream)
    assert len(stream.tokens()) == 1
    policy = os.sched_getscheduler(engine._thread.native_id)
    assert (policy == os.SCHED_IDLE) == idle_priority
    assert os.sched_getscheduler(0) != os.SCHED_IDLE, "whoever starts an engine stays as it is"
