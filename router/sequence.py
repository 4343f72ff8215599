"""One sequence on its way through the engine."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from protos.errors import DeadlineExceeded
from router.context_shards.segments import SequenceSegments
from router.kv_tiers.tiers import Restore
from router.paging.blocks import BlockChain
from router.paging.sequence_pages import SequencePages
from router.request import Emit, EngineEvent, GenerationRequest, TokenLogprob
from router.sampling import SamplingState
from router.trace import SequenceTrace
from router.turns import Rank

_LOG = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Sequence:
    """A request, what it has produced, and what it holds.

        ids       [ prompt ............ | output ... ]
        computed  [ in the cache ..... )               num_computed < len(ids) while it runs

    While more than one id is not computed, it is being filled in: its prompt, or all it had if it made room for others.
    Afterwards exactly the last id is not computed.
    """

    request: GenerationRequest
    receiver: Emit
    sampling: SamplingState
    deadline: float | None
    """Monotonic second at which the sequence ends with DeadlineExceeded; None: none."""
    arrival: int
    """Grows with every request: who came first."""
    chain: BlockChain
    """Keys of its pages' content, for the prefix cache."""
    trace: SequenceTrace | None = None
    """Is told of its steps; None: it is not traced."""
    pages: SequencePages | None = None
    """Its part of the cache; set while it holds a slot."""
    segments: SequenceSegments | None = None
    """Its keys and values on context shards, if those of global layers are there; kept while it waits, too."""
    restore: Restore | None = None
    """Pages on their way back into the cache that it waits for, or did."""
    has_left: bool = False
    """True once it ended or was cancelled: nothing more is computed for it."""
    is_deaf: bool = False
    """True once its receiver raised: nothing more is emitted."""
    prompt_is_done: bool = False
    """True once PromptDone was emitted."""
    progress_due_s: float | None = None
    """Second from which its progress may be told again; None: no step has computed a part of its prompt yet."""
    num_cached: int | None = None
    """Prompt tokens that the prefix cache had when it first got a slot; None until then."""
    turn: int = 0
    """Among those of equal priority, who gets a slot first: see `router.turns`."""
    last_turn: int = 0
    """Grows with every token that sequences take turns for, so that it tells who waits longest: see
    `router.even_share`."""
    ids: list[int] = field(default_factory=list)
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
            _LOG.exception("the receiver of a sequence failed: it is dropped", extra=self.log_fields())
            self.is_deaf = True

    def log_fields(self, **more: object) -> dict[str, object]:
        """Return `extra` of a line in the log about this sequence."""
        named = {"request_id": self.request.request_id, "tokens": self.num_output}
        return {"fields": {**named, **more}}

    def lateness(self, now: float) -> DeadlineExceeded | None:
        """Return the error to end with if the deadline has passed at a monotonic second."""
        if self.deadline is None or now < self.deadline:
            return None
        return DeadlineExceeded(
            f"expected the request to finish within {self.request.timeout_s:g} s, found it unfinished after "
            f"{self.num_output} tokens: allow more time or ask for fewer tokens"
        )

    @property
    def rank(self) -> Rank:
        """Return what decides who is served first."""
        return self.request.priority, self.turn, self.arrival

    @property
    def num_computed(self) -> int:
        """Return the ids that are in the cache."""
        return 0 if self.pages is None else self.pages.num_tokens

    @property
    def num_output(self) -> int:
        """Return the tokens generated so far."""
        return len(self.ids) - len(self.request.prompt_ids)

    @property
    def most_tokens(self) -> int:
        """Return the tokens it has in the end, at most."""
        return len(self.request.prompt_ids) + self.request.max_tokens

    @property
    def num_uncomputed(self) -> int:
        """Return the ids not in the cache."""
        return len(self.ids) - self.num_computed

    @property
    def is_broken(self) -> bool:
        """Tell whether keys and values of it were lost and are to be computed again."""
        return self.segments is not None and bool(self.segments.lost)

    @property
    def waits_for_pages(self) -> bool:
        """Tell whether pages are on their way back that it begins with."""
        return self.restore is not None and not self.restore.is_settled

    @property
    def is_prefilling(self) -> bool:
        """Tell whether more than its newest id is still to be computed."""
        return self.num_uncomputed > 1

    @property
    def wants_prompt_logits(self) -> bool:
        """Tell whether the logits of all its tokens are still wanted, not of the last one only."""
        return self.request.prompt_logprobs is not None and not self.prompt_is_done
