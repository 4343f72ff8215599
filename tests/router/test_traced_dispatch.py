"""What a transport tells of the dispatches of a traced step, whatever becomes of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from protos import errors
from router.transport.ejection import EJECT_AFTER
from tests.router.live_transport import EXPERTS, HIDDEN_TD, run, send_to, wait_until


@dataclass
class Call:
    """A call of a traced step and how it ended."""

    replica_id: str
    num_tokens: int
    traceparent: str
    ends: list[str] = field(default_factory=list)

    def answered(self, seconds: float, *, queue_us: int, compute_us: int) -> None:
        assert seconds > 0
        self.ends.append("answered")

    def failed(self, error: errors.ServingError) -> None:
        self.ends.append(error.reason)

    def dropped(self) -> None:
        self.ends.append("dropped")


class Step:
    """A traced step that remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def call(self, name: str, layer: int, process: str, num_tokens: int) -> Call:
        assert (name, layer) == ("dispatch", 7)
        self.calls.append(Call(process, num_tokens, f"span-{len(self.calls)}"))
        return self.calls[-1]

    def end(self) -> None: ...

    @property
    def ends(self) -> dict[str, str]:
        """Return how each replica's call ended first: nothing else counts."""
        return {call.replica_id: call.ends[0] for call in self.calls}


def test_each_share_is_a_call_and_its_replica_hears_the_name(cluster):
    transport, replicas = cluster([(0, 1), (2, 3)])
    run(transport)
    transport.trace = step = Step()
    assert torch.equal(run(transport), HIDDEN_TD * 2)
    assert step.ends == {"replica-0": "answered", "replica-1": "answered"}
    assert sum(call.num_tokens for call in step.calls) == len(HIDDEN_TD)
    heard = {replica.replica_id: [each.traceparent for each in replica.dispatches] for replica in replicas}
    assert heard == {call.replica_id: ["", call.traceparent] for call in step.calls}
    transport.trace = None
    run(transport)
    assert [replica.dispatches[-1].traceparent for replica in replicas] == ["", ""]


def test_a_share_that_fails_and_its_second_try_are_calls_of_their_own(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS])
    transport.trace = step = Step()
    replicas[0].failures = [errors.Overloaded("full")]
    pending, expected = send_to(transport, ["replica-0"])
    assert torch.equal(pending.wait(), expected)
    assert step.ends == {"replica-0": "OVERLOADED", "replica-1": "answered"}


def test_one_that_was_late_is_dropped_when_another_answers_first(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS], answer_s=60.0)
    for _ in range(40):
        run(transport)
    transport.trace = step = Step()
    replicas[0].gate.clear()
    pending, expected = send_to(transport, ["replica-0"])
    assert torch.equal(pending.wait(), expected)
    assert step.ends == {"replica-0": "dropped", "replica-1": "answered"}
    replicas[0].gate.set()


def test_calls_of_a_step_that_was_given_up_are_dropped(cluster):
    transport, _ = cluster([EXPERTS])
    transport.trace = step = Step()
    pending, _ = send_to(transport, ["replica-0"])
    pending.give_up()
    assert step.ends == {"replica-0": "dropped"}


def test_a_share_that_cannot_be_sent_is_a_call_that_failed(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS])
    replicas[0].stop()
    assert wait_until(lambda: not transport.stream("replica-0").is_ready)
    transport.trace = step = Step()
    pending, expected = send_to(transport, ["replica-0"])
    assert torch.equal(pending.wait(), expected)
    assert step.ends == {"replica-0": "REPLICA_UNAVAILABLE", "replica-1": "answered"}


def test_a_probe_is_no_call_of_the_step(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS])
    for _ in range(EJECT_AFTER):
        transport._evidence.ejection.lost("replica-0", 0.0)
    transport.trace = step = Step()
    run(transport)
    assert [call.replica_id for call in step.calls] == ["replica-1"]
    assert wait_until(lambda: len(replicas[0].dispatches) == 1)
    assert replicas[0].dispatches[0].traceparent == ""
