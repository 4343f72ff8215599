"""One sequence on its way through the engine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from protos.errors import DeadlineExceeded
from router.kv_cache import SequenceCache
from router.request import EngineEvent, GenerationRequest, TokenLogprob
from router.sampling import SamplingState

_LOG = logging.getLogger(__name__)

Emit = Callable[[EngineEvent], None]


@dataclass(slots=True, eq=False)
class Sequence:
    """A request, what it has produced, and what it holds.

        ids       [ prompt ............ | output ... ]
        computed  [ in the cache ..... )               num_computed <= len(ids)

    The prompt is being filled in while num_computed < len(prompt); afterwards exactly the last id is not computed.
    """

    request: GenerationRequest
    receiver: Emit
    sampling: SamplingState
    deadline: float | None
    """Monotonic second at which the sequence ends with DeadlineExceeded; None: none."""
    reserved_bytes: int
    """Cache it may grow to."""
    cache: SequenceCache | None = None
    """Set from its first step until it leaves."""
    has_left: bool = False
    """True once it ended or was cancelled: nothing more is computed for it."""
    is_deaf: bool = False
    """True once its receiver raised: nothing more is emitted."""
    ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ids.extend(self.request.prompt_ids)

    def emit(self, event: EngineEvent) -> None:
        """Hand an event to the receiver. One that raises hears nothing more, and the step goes on for the others."""
        if self.is_deaf:
            return
        try:
            self.receiver(event)
        except Exception:  # noqa: BLE001 the receiver is the caller's: its bug ends this sequence and no other
            _LOG.exception("the receiver of request %s failed: its sequence is dropped", self.request.request_id)
            self.is_deaf = True

    def lateness(self, now: float) -> DeadlineExceeded | None:
        """Return the error to end with if the deadline has passed at a monotonic second."""
        if self.deadline is None or now < self.deadline:
            return None
        return DeadlineExceeded(
            f"expected the request to finish within {self.request.timeout_s:g} s, found it unfinished after "
            f"{self.num_output} tokens: allow more time or ask for fewer tokens"
        )

    @property
    def num_output(self) -> int:
        """Return the tokens generated so far."""
        return len(self.ids) - len(self.request.prompt_ids)

    @property
    def num_uncomputed(self) -> int:
        """Return the ids not in the cache: the rest of the prompt, or the newest token."""
        return len(self.ids) - self.num_computed

    @property
    def is_prefilling(self) -> bool:
        """Tell whether part of the prompt is still to be computed."""
        return self.num_computed < len(self.request.prompt_ids)
