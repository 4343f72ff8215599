"""One sequence on its way through the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from router.kv_cache import SequenceCache
from router.request import EngineEvent, GenerationRequest, TokenLogprob
from router.sampling import SamplingState

Emit = Callable[[EngineEvent], None]


@dataclass(slots=True, eq=False)
class Sequence:
    """A request, what it has produced, and what it holds.

        ids       [ prompt ............ | output ... ]
        computed  [ in the cache ..... )               num_computed <= len(ids)

    The prompt is being filled in while num_computed < len(prompt); afterwards exactly the last id is not computed.
    """

    request: GenerationRequest
    emit: Emit
    sampling: SamplingState
    deadline: float | None
    """Monotonic second at which the sequence ends with DeadlineExceeded; None: none."""
    reserved_bytes: int
    """Cache it may grow to."""
    cache: SequenceCache | None = None
    """Set while the sequence holds a slot."""
    ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ids.extend(self.request.prompt_ids)

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
