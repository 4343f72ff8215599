"""What a router and a front door say to each other about sequences, and in how many streams.

    front door                                                router
    generate(request, door)   -- a stream per sequence -->    accepted; silent until the sequence ends
    carry(router, door)       -- one stream -->               the events of all the door's sequences there, step by
                                                              step, and a heartbeat where there are none

A stream per sequence that carried its tokens would cost the router a message per token, in the process of the step
loop. It is kept for what it does well: refusing, cancelling, and telling when either side is gone.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.outbox import Events
from router.request import EngineEvent, TokenChosen

HEARTBEAT_S = 0.5
"""A router that has had nothing to say for so long says that, with an empty batch."""
SILENCE_S = 3.0
"""A router not heard of for so long is taken for gone, and its sequences go on elsewhere. A stopped or cut-off process
breaks no connection for minutes. Six heartbeats: a busy machine may delay one, and a false alarm costs every sequence
there a prefill."""

Packed = list[tuple[str, list[int | EngineEvent]]]
"""Events by request id. A token without logprob is its id alone: that is nearly all of them."""


def pack(events: Events) -> Packed:
    """Return events as they travel."""
    return [(request_id, [_pack(event) for event in each]) for request_id, each in events.items()]


def unpack(packed: Sequence[int | EngineEvent]) -> list[EngineEvent]:
    """Return one sequence's events as they were."""
    return [TokenChosen(token_id=each) if isinstance(each, int) else each for each in packed]


def _pack(event: EngineEvent) -> int | EngineEvent:
    return event.token_id if isinstance(event, TokenChosen) and event.logprob is None else event
