"""When dispatches are computed, merged, refused and failed."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from experts.batcher import Batcher, BatcherLimits
from experts.work import Outcome, Work
from protos import errors
from tests.clock import Clock
from tests.experts.replica_client import wait_until

WAIT_S = 20


class GatedDoubler:
    """Experts that double their input, once the gate is open; says when a batch has begun."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.batches: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []
        self.threads: list[str] = []
        self.failure: Exception | None = None

    def __call__(self, layer, hidden_ND, expert_ids, token_counts):
        self.batches.append((layer, tuple(expert_ids), tuple(token_counts)))
        self.threads.append(threading.current_thread().name)
        self.begun.put(layer)
        assert self.gate.wait(WAIT_S)
        if self.failure is not None:
            raise self.failure
        return hidden_ND * 2


@pytest.fixture
def experts():
    return GatedDoubler()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def start(experts, clock):
    """Start a batcher with some limits; it is closed after the test."""
    batchers: list[Batcher] = []

    def make(*, inline_tokens=64, piece_tokens=1, **limits) -> Batcher:
        batchers.append(
            Batcher(
                experts,
                BatcherLimits(inline_macs=7 * inline_tokens, piece_tokens=piece_tokens, **limits),
                macs_per_token=7,
                clock=clock,
            )
        )
        return batchers[-1]

    yield make
    experts.gate.set()
    for batcher in batchers:
        batcher.close()


class Inbox:
    """Takes outcomes of work that waited."""

    def __init__(self) -> None:
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()

    def work(self, clock, *, layer=0, counts=None, deadline_s=None, stands_back=False) -> Work:
        counts = counts or {0: 1}
        num_tokens = sum(counts.values())
        return Work(
            layer=layer,
            expert_ids=tuple(counts),
            token_counts=tuple(counts.values()),
            num_tokens=num_tokens,
            hidden_ND=torch.arange(num_tokens * 2.0).reshape(num_tokens, 2),
            arrived_s=clock(),
            deadline_s=deadline_s,
            stands_back=stands_back,
            deliver=self._outcomes.put,
        )

    def next(self) -> Outcome:
        return self._outcomes.get(timeout=WAIT_S)

    @property
    def is_empty(self) -> bool:
        return self._outcomes.empty()


def occupy(batcher: Batcher, experts: GatedDoubler, clock: Clock, layer: int = 9) -> Inbox:
    """Have the compute thread compute a large dispatch until the gate opens."""
    inbox = Inbox()
    assert batcher.submit(inbox.work(clock, layer=layer, counts={0: 100})) is None
    assert experts.begun.get(timeout=WAIT_S) == layer
    return inbox


def test_idle_batcher_computes_small_work_in_the_callers_thread(start, experts, clock):
    experts.gate.set()
    inbox = Inbox()
    work = inbox.work(clock, counts={0: 2, 3: 1})
    outcome = start().submit(work)
    assert torch.equal(outcome.outputs_ND, work.hidden_ND * 2)
    assert experts.threads == [threading.current_thread().name]
    assert inbox.is_empty


def test_large_work_is_computed_in_the_compute_thread(start, experts, clock):
    experts.gate.set()
    inbox = Inbox()
    assert start(inline_tokens=2).submit(inbox.work(clock, counts={0: 3})) is None
    assert inbox.next().outputs_ND.shape == (3, 2)
    assert experts.threads == ["experts-compute"]


def test_what_waits_for_a_layer_is_computed_as_one_batch(start, experts, clock):
    batcher = start()
    first = occupy(batcher, experts, clock)
    inboxes = [Inbox() for _ in range(3)]
    counts = [{0: 2, 2: 1}, {1: 1, 2: 2}, {2: 1}]
    works = [inbox.work(clock, layer=5, counts=count) for inbox, count in zip(inboxes, counts, strict=True)]
    assert [batcher.submit(work) for work in works] == [None, None, None]
    experts.gate.set()
    assert first.next().error is None
    for inbox, work in zip(inboxes, works, strict=True):
        assert torch.equal(inbox.next().outputs_ND, work.hidden_ND * 2)
    assert experts.batches[1:] == [(5, (0, 1, 2), (2, 1, 4))]


def test_layers_are_served_in_the_order_of_their_oldest_dispatch(start, experts, clock):
    batcher, inbox = start(), Inbox()
    occupy(batcher, experts, clock)
    for layer in (3, 1, 3, 2, 1):
        batcher.submit(inbox.work(clock, layer=layer))
    experts.gate.set()
    for _ in range(5):
        inbox.next()
    assert [layer for layer, _, _ in experts.batches] == [9, 3, 1, 2]


def test_small_work_waits_its_turn_while_another_computes_inline(start, experts, clock):
    batcher, inbox = start(), Inbox()
    with ThreadPoolExecutor(1) as pool:
        inline = pool.submit(batcher.submit, Inbox().work(clock, layer=1))
        assert experts.begun.get(timeout=WAIT_S) == 1
        assert batcher.submit(inbox.work(clock, layer=2)) is None
        assert batcher.num_unfinished == 2
        experts.gate.set()
        assert inline.result(WAIT_S).outputs_ND is not None
    assert inbox.next().outputs_ND is not None


def test_times_tell_waiting_from_computing(start, experts, clock):
    batcher, inbox = start(), Inbox()
    first = occupy(batcher, experts, clock)
    batcher.submit(inbox.work(clock))
    clock.now += 0.25
    experts.gate.set()
    outcome = first.next()
    assert (outcome.queue_us, outcome.compute_us) == (0, 250_000)
    assert inbox.next().queue_us == 250_000


@pytest.mark.parametrize(
    ("limits", "counts"),
    [({"max_waiting_dispatches": 2}, {0: 1}), ({"max_waiting_tokens": 5}, {0: 2})],
)
def test_full_queue_refuses_with_a_time_to_come_back(start, experts, clock, limits, counts):
    batcher, inbox = start(retry_after_ms=7, **limits), Inbox()
    occupy(batcher, experts, clock)
    for _ in range(2):
        batcher.submit(inbox.work(clock, counts=counts))
    with pytest.raises(errors.Overloaded, match="found") as refusal:
        batcher.submit(inbox.work(clock, counts=counts))
    assert refusal.value.retry_after_ms == 7
    experts.gate.set()
    assert [inbox.next().error, inbox.next().error] == [None, None]


def test_dispatch_larger_than_the_queue_is_accepted_when_nothing_waits(start, experts, clock):
    experts.gate.set()
    inbox = Inbox()
    start(max_waiting_tokens=1).submit(inbox.work(clock, counts={0: 100}))
    assert inbox.next().error is None


def test_late_work_is_not_computed_and_its_neighbours_are(start, experts, clock):
    batcher, late, early = start(), Inbox(), Inbox()
    occupy(batcher, experts, clock)
    batcher.submit(late.work(clock, deadline_s=clock() + 1))
    batcher.submit(early.work(clock, deadline_s=clock() + 3, counts={4: 2}))
    clock.now += 2
    experts.gate.set()
    assert isinstance(late.next().error, errors.DeadlineExceeded)
    assert early.next().outputs_ND.shape == (2, 2)
    assert experts.batches[1:] == [(0, (4,), (2,))]


def test_failing_kernel_fails_its_batch_and_nothing_else(start, experts, clock):
    batcher, inbox = start(), Inbox()
    first = occupy(batcher, experts, clock)
    batcher.submit(inbox.work(clock, layer=1))
    experts.failure = RuntimeError("no such instruction")
    experts.gate.set()
    for outcome in (first.next(), inbox.next()):
        assert isinstance(outcome.error, errors.InternalError)
        assert "no such instruction" in outcome.error.message
    experts.failure = None
    batcher.submit(inbox.work(clock, counts={0: 100}))
    assert inbox.next().error is None
    assert batcher.submit(inbox.work(clock)).error is None


def test_draining_finishes_what_was_accepted_and_refuses_more(start, experts, clock):
    batcher, inbox = start(), Inbox()
    occupy(batcher, experts, clock)
    batcher.submit(inbox.work(clock))
    assert batcher.drain(0) == 2
    with pytest.raises(errors.Draining):
        batcher.submit(inbox.work(clock))
    with ThreadPoolExecutor(1) as pool:
        draining = pool.submit(batcher.drain, 10 * WAIT_S)
        experts.gate.set()
        assert draining.result(WAIT_S) == 0
    assert inbox.next().error is None
    assert batcher.queued_tokens == 0
    assert batcher.total_tokens == 101


def test_draining_ends_with_what_a_callers_thread_computes(start, experts, clock):
    batcher = start()
    with ThreadPoolExecutor(2) as pool:
        inline = pool.submit(batcher.submit, Inbox().work(clock))
        experts.begun.get(timeout=WAIT_S)
        draining = pool.submit(batcher.drain, 10 * WAIT_S)
        assert batcher.drain(0) == 1
        experts.gate.set()
        assert draining.result(WAIT_S) == 0
        assert inline.result(WAIT_S).error is None


def test_closing_fails_what_waits(start, experts, clock):
    batcher, inbox = start(), Inbox()
    first = occupy(batcher, experts, clock)
    batcher.submit(inbox.work(clock))
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(batcher.close)
        assert isinstance(inbox.next().error, errors.Draining)
        experts.gate.set()
        closing.result(WAIT_S)
    assert first.next().error is None


def test_many_threads_get_their_own_answers(start, experts, clock):
    experts.gate.set()
    batcher = start(inline_tokens=2)

    def send(number: int) -> bool:
        inbox = Inbox()
        work = inbox.work(clock, layer=number % 3, counts={number % 4: 1 + number % 3, 5: 1})
        outcome = batcher.submit(work) or inbox.next()
        return torch.equal(outcome.outputs_ND, work.hidden_ND * 2)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(send, range(400)))
    assert sum(sum(counts) for _, _, counts in experts.batches) == batcher.total_tokens


# Work that stands back.


def batches_of(experts: GatedDoubler) -> list[tuple[int, int]]:
    """Return the layer and the tokens of every batch."""
    return [(layer, sum(counts)) for layer, _, counts in experts.batches]


def test_others_pass_between_two_pieces_of_work_that_stands_back(start, experts, clock):
    batcher, long, short = start(piece_macs=7 * 10, inline_tokens=0), Inbox(), Inbox()
    batcher.submit(long.work(clock, layer=0, counts=dict.fromkeys(range(4), 10), stands_back=True))
    assert experts.begun.get(timeout=WAIT_S) == 0
    for layer in (5, 6):
        batcher.submit(short.work(clock, layer=layer, counts={1: 3}))
    experts.gate.set()
    for inbox, count in ((short, 2), (long, 1)):
        for _ in range(count):
            assert inbox.next().error is None
    assert batches_of(experts) == [(0, 10), (5, 3), (0, 10), (6, 3), (0, 10), (0, 10)]


def test_what_is_computed_in_pieces_comes_back_whole_and_in_order(start, experts, clock):
    batcher, inbox = start(piece_macs=7 * 4, inline_tokens=0), Inbox()
    experts.gate.set()
    work = inbox.work(clock, counts={0: 3, 2: 9, 5: 1}, stands_back=True)
    batcher.submit(work)
    assert torch.equal(inbox.next().outputs_ND, work.hidden_ND * 2)
    assert batcher.drain(WAIT_S) == 0
    assert (batcher.total_tokens, batcher.times.dispatches) == (13, 1)


def test_of_both_kinds_waiting_each_gets_its_turn(start, experts, clock):
    batcher, inbox = start(inline_tokens=0), Inbox()
    batcher.submit(inbox.work(clock, layer=9))
    assert experts.begun.get(timeout=WAIT_S) == 9
    for layer in range(3):
        batcher.submit(inbox.work(clock, layer=layer, stands_back=True))
        batcher.submit(inbox.work(clock, layer=layer + 5))
    experts.gate.set()
    for _ in range(7):
        inbox.next()
    assert [layer for layer, _ in batches_of(experts)] == [9, 5, 0, 6, 7, 1, 2]


def test_work_that_stands_back_is_not_merged_with_other_work_of_its_layer(start, experts, clock):
    batcher, inbox = start(inline_tokens=0), Inbox()
    batcher.submit(inbox.work(clock, layer=9))
    assert experts.begun.get(timeout=WAIT_S) == 9
    for stands_back in (False, True, False, True):
        batcher.submit(inbox.work(clock, layer=1, counts={0: 2}, stands_back=stands_back))
    experts.gate.set()
    for _ in range(5):
        inbox.next()
    assert batches_of(experts) == [(9, 1), (1, 4), (1, 4)]


def test_time_that_others_took_is_not_counted_twice(start, experts, clock):
    class SlowDoubler:
        def __call__(self, layer, hidden_ND, expert_ids, token_counts):
            clock.now += 1.0
            return experts(layer, hidden_ND, expert_ids, token_counts)

    batcher, inbox = start(piece_macs=7 * 10, inline_tokens=0), Inbox()
    batcher._run_experts = SlowDoubler()
    batcher.submit(inbox.work(clock, counts={0: 10, 1: 10}, stands_back=True))
    experts.begun.get(timeout=WAIT_S)
    batcher.submit(inbox.work(clock, layer=3))
    experts.gate.set()
    for _ in range(2):
        inbox.next()
    assert batcher.drain(WAIT_S) == 0
    assert batcher.times.busy_s == 3.0


def test_pieces_are_held_back_for_a_time_of_others_and_then_have_their_turn(start, experts, clock):
    def run(layer, hidden_ND, expert_ids, token_counts):
        clock.now += 1.0
        return experts(layer, hidden_ND, expert_ids, token_counts)

    batcher, inbox = start(piece_macs=7 * 10, inline_tokens=0), Inbox()
    batcher._run_experts = run
    batcher.submit(inbox.work(clock, layer=0, counts={0: 10, 1: 10}, stands_back=True))
    assert experts.begun.get(timeout=WAIT_S) == 0
    for layer in range(1, 13):
        batcher.submit(inbox.work(clock, layer=layer))
    experts.gate.set()
    for _ in range(13):
        inbox.next()
    # A piece took a second, so that others may take eight before the next.
    assert [layer for layer, _ in batches_of(experts)] == [0, *range(1, 9), 0, *range(9, 13)]


def test_closing_does_not_wait_for_all_pieces_of_what_stands_back(start, experts, clock):
    batcher, inbox = start(piece_macs=7, inline_tokens=0), Inbox()
    batcher.submit(inbox.work(clock, counts={0: 500}, stands_back=True))
    experts.begun.get(timeout=WAIT_S)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while not batcher._is_closed:
        time.sleep(0.001)
    experts.gate.set()
    closing.join(WAIT_S)
    assert len(experts.batches) < 10


def test_a_piece_has_some_tokens_however_large_an_expert_is(start, experts, clock):
    batcher, inbox = start(piece_macs=1, piece_tokens=4, inline_tokens=0), Inbox()
    experts.gate.set()
    batcher.submit(inbox.work(clock, counts={0: 10}, stands_back=True))
    assert inbox.next().error is None
    assert len(experts.batches) == 3


def test_work_that_waited_is_forgotten_once_it_is_computed(start, experts, clock):
    experts.gate.set()
    batcher, inbox = start(inline_tokens=0), Inbox()
    work = inbox.work(clock)
    forgotten = weakref.ref(work.hidden_ND)  # perhaps a view of memory that a router wants back
    batcher.submit(work)
    del work
    assert inbox.next().outputs_ND is not None
    wait_until(lambda: forgotten() is None)
