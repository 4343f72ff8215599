"""The engine: a thread that takes requests, runs steps and emits tokens, for many sequences at once."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence as SequenceOf
from typing import Literal

from torch import Tensor

from models.config import ModelConfig
from models.llama4.decoder import Decoder
from protos import errors
from protos.codec import MAX_MESSAGE_BYTES
from router.batch import Batch, Span
from router.forward import Forward
from router.kv_cache import CacheLayout, SequenceCache
from router.logprobs import prompt_logprobs, token_logprobs
from router.request import Ended, EngineLoad, GenerationRequest, PromptDone, TokenChosen
from router.sampling import SamplingState, choose_tokens
from router.sampling_bounds import check_sampling
from router.scheduler import EngineLimits, Scheduler, Work
from router.sequence import Emit, Sequence
from router.transport.base import Transport

_LOG = logging.getLogger(__name__)


class Engine:
    """Generates for many requests with one model.

    `submit`, `cancel` and `load` may be called from any thread. Everything else happens in the step loop's own
    thread, one step after the other:

        take what was submitted and cancelled -> end what is late -> admit -> compute -> sample -> emit

    Every accepted request ends with exactly one `Ended`, unless it was cancelled.

    Args:
        decoder: the router's share of the model.
        transport: the way to the experts; the engine does not close it.
        limits: what to take on.
    """

    def __init__(self, decoder: Decoder, transport: Transport, limits: EngineLimits) -> None:
        _check_limits(limits, decoder)
        self.config = decoder.config
        self.limits = limits
        self._device = decoder.device
        self._layout = CacheLayout(decoder.config, decoder.dtype)
        self._forward = Forward(decoder, transport)
        self._scheduler = Scheduler(limits)
        self._changed = threading.Condition()
        self._submitted: deque[Sequence] = deque()
        self._cancelled: set[str] = set()
        self._load = EngineLoad(
            running=0,
            waiting=0,
            queued_prompt_tokens=0,
            kv_used_bytes=0,
            kv_total_bytes=limits.kv_bytes,
            slots=limits.slots,
            generated_tokens=0,
        )
        self._num_generated = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the step loop."""
        self._thread.start()

    def stop(self) -> None:
        """End every sequence with ReplicaUnavailable and stop the loop. Blocks for at most one step. Idempotent."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, request: GenerationRequest, emit: Emit) -> None:
        """Accept a request.

        Args:
            request: ids in, limits and sampling.
            emit: receives every event, in order, from the step loop's thread; it must not block or raise.

        Raises:
            InvalidRequest: a field is wrong.
            ContextTooLong: prompt and max_tokens exceed the context, or the whole cache.
            Overloaded: the queue is full.
            ReplicaUnavailable: the engine is stopping.
        """
        check_request(request, self.config, self.limits)
        reserved_bytes = self._layout.sequence_bytes(len(request.prompt_ids) + request.max_tokens)
        if reserved_bytes > self.limits.kv_bytes:
            raise errors.ContextTooLong(
                f"expected a request whose cache fits {self.limits.kv_bytes} bytes, found one that needs "
                f"{reserved_bytes} for {len(request.prompt_ids)} prompt tokens and {request.max_tokens} new ones: "
                "lower max_tokens, shorten the prompt or raise router.kv_bytes"
            )
        sequence = Sequence(
            request=request,
            emit=emit,
            sampling=SamplingState(request),
            deadline=None if request.timeout_s is None else time.monotonic() + request.timeout_s,
            reserved_bytes=reserved_bytes,
        )
        with self._changed:
            if self._stopping:
                raise errors.ReplicaUnavailable("expected a running router, found one that is stopping: try another")
            waiting = self._load.waiting + len(self._submitted)
            if waiting >= self.limits.max_waiting:
                raise errors.Overloaded(
                    f"expected fewer than {self.limits.max_waiting} waiting requests, found {waiting}: try again later",
                    retry_after_ms=1000,
                )
            self._submitted.append(sequence)
            self._changed.notify()

    def cancel(self, request_id: str) -> None:
        """Drop a sequence and free what it holds, at the next step; it emits nothing more. Idempotent."""
        with self._changed:
            self._cancelled.add(request_id)
            self._changed.notify()

    def load(self) -> EngineLoad:
        """Return how busy the engine is, as of the last step."""
        with self._changed:
            return self._load

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if self._stopping:
                    break
                submitted, self._submitted = self._submitted, deque()
                cancelled, self._cancelled = self._cancelled, set()
            for sequence in submitted:
                self._scheduler.add(sequence)
            self._drop(cancelled)
            self._end_late()
            for sequence in self._scheduler.admit():
                most = len(sequence.request.prompt_ids) + sequence.request.max_tokens
                sequence.cache = SequenceCache(self._layout, most, self._device)
            if work := self._scheduler.next_step():
                self._step(work)
            self._publish_load()
        self._end_all()

    def _has_work(self) -> bool:
        scheduler = self._scheduler
        return bool(self._stopping or self._submitted or self._cancelled or scheduler.running or scheduler.waiting)

    def _step(self, work: list[Work]) -> None:
        try:
            logits = self._forward(Batch.of([_span(item) for item in work], self._layout, self._device))
            self._advance(work, logits)
        except errors.ServingError as error:
            self._fail(work, error)
        except Exception:  # noqa: BLE001 the loop serves others: a bug in one step must not end them all
            _LOG.exception("step failed for %s", [item.sequence.request.request_id for item in work])
            self._fail(work, errors.InternalError("the step that computed this request failed: see the router's log"))

    def _advance(self, work: list[Work], logits_BV: Tensor) -> None:
        """Count what was computed, and choose the next token of every sequence whose ids are all in the cache."""
        choosing: list[Sequence] = []
        rows: list[int] = []
        row = 0
        for item in work:
            sequence = item.sequence
            num_rows = item.num_tokens if _wants_prompt_logprobs(item) else 1
            item_logits = logits_BV[row : row + num_rows]
            row += num_rows
            if _wants_prompt_logprobs(item) and not self._took_prompt_logprobs(item, item_logits):
                continue
            was_prefilling = sequence.is_prefilling
            sequence.num_computed += item.num_tokens
            if sequence.is_prefilling:
                continue
            if was_prefilling:
                self._emit_prompt_done(sequence)
            choosing.append(sequence)
            rows.append(row - 1)
        if choosing:
            self._choose(choosing, logits_BV[rows])

    def _choose(self, sequences: SequenceOf[Sequence], logits_BV: Tensor) -> None:
        try:
            token_ids = choose_tokens(logits_BV, [sequence.sampling for sequence in sequences])
        except errors.InternalError as error:
            self._choose_without(error, sequences, logits_BV)
            return
        logprobs = token_logprobs(logits_BV, token_ids, [sequence.request.logprobs for sequence in sequences])
        for sequence, token_id, logprob in zip(sequences, token_ids, logprobs, strict=True):
            if token_id in sequence.request.stop_ids:
                self._end(sequence, "stop")
                continue
            sequence.ids.append(token_id)
            sequence.sampling.append(token_id)
            self._num_generated += 1
            sequence.emit(TokenChosen(token_id=token_id, logprob=logprob))
            if sequence.num_output == sequence.request.max_tokens:
                self._end(sequence, "length")

    def _choose_without(self, error: errors.InternalError, sequences: SequenceOf[Sequence], logits_BV: Tensor) -> None:
        """End the sequences whose logits are unusable, and go on with the others."""
        broken = {int(row) for row in error.metadata["rows"].split(",")}
        for row in broken:
            self._end(sequences[row], "error", error)
        if sound := [row for row in range(len(sequences)) if row not in broken]:
            self._choose([sequences[row] for row in sound], logits_BV[sound])

    def _took_prompt_logprobs(self, item: Work, logits_TV: Tensor) -> bool:
        """Report on a chunk of the prompt; end the sequence and return False if its logits are unusable."""
        sequence, request = item.sequence, item.sequence.request
        num_top = request.prompt_logprobs or 0
        try:
            reports = prompt_logprobs(logits_TV, request.prompt_ids, sequence.num_computed, num_top)
        except errors.InternalError as error:
            self._end(sequence, "error", error)
            return False
        sequence.prompt_logprobs.extend(reports)
        return True

    def _emit_prompt_done(self, sequence: Sequence) -> None:
        wanted = sequence.request.prompt_logprobs is not None
        sequence.emit(PromptDone(logprobs=tuple(sequence.prompt_logprobs) if wanted else None))

    def _drop(self, request_ids: set[str]) -> None:
        if not request_ids:
            return
        for sequence in self._scheduler.running + self._scheduler.waiting:
            if sequence.request.request_id in request_ids:
                self._release(sequence)

    def _end_late(self) -> None:
        now = time.monotonic()
        for sequence in self._scheduler.running + self._scheduler.waiting:
            if sequence.deadline is not None and now >= sequence.deadline:
                timeout_s = sequence.request.timeout_s
                late = errors.DeadlineExceeded(
                    f"expected the request to finish within {timeout_s:g} s, found it unfinished after "
                    f"{sequence.num_output} tokens: allow more time or ask for fewer tokens"
                )
                self._end(sequence, "error", late)

    def _fail(self, work: list[Work], error: errors.ServingError) -> None:
        for item in work:
            self._end(item.sequence, "error", error)

    def _end_all(self) -> None:
        stopping = errors.ReplicaUnavailable("the router stopped before the request was finished: send it again")
        with self._changed:
            submitted, self._submitted = self._submitted, deque()
        for sequence in (*self._scheduler.running, *self._scheduler.waiting, *submitted):
            self._end(sequence, "error", stopping)
        self._publish_load()

    def _end(
        self, sequence: Sequence, reason: Literal["stop", "length", "error"], error: errors.ServingError | None = None
    ) -> None:
        self._release(sequence)
        sequence.emit(Ended(reason=reason, error=error))

    def _release(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        sequence.cache = None

    def _publish_load(self) -> None:
        running, waiting = self._scheduler.running, self._scheduler.waiting
        load = EngineLoad(
            running=len(running),
            waiting=len(waiting),
            queued_prompt_tokens=sum(s.num_uncomputed for s in (*running, *waiting) if s.is_prefilling),
            kv_used_bytes=sum(s.cache.num_bytes for s in running if s.cache is not None),
            kv_total_bytes=self.limits.kv_bytes,
            slots=self.limits.slots,
            generated_tokens=self._num_generated,
        )
        with self._changed:
            self._load = load


def check_request(request: GenerationRequest, config: ModelConfig, limits: EngineLimits) -> None:
    """Check a request against the model.

    Raises:
        InvalidRequest: a field is wrong.
        ContextTooLong: prompt and max_tokens exceed the context.
    """
    if not request.prompt_ids:
        raise errors.InvalidRequest("expected a prompt of at least one token, found none: send a prompt")
    for name, ids in (("prompt", request.prompt_ids), ("stop", request.stop_ids)):
        if bad := [token for token in ids if not 0 <= token < config.vocab_size]:
            raise errors.InvalidRequest(
                f"expected {name} token ids in [0, {config.vocab_size}), found {bad[0]}: use this model's tokenizer"
            )
    if request.max_tokens < 1:
        raise errors.InvalidRequest(f"expected max_tokens of at least 1, found {request.max_tokens}")
    num_tokens = len(request.prompt_ids) + request.max_tokens
    if num_tokens > limits.context_length:
        raise errors.ContextTooLong(
            f"expected prompt and max_tokens within the context of {limits.context_length} tokens, found "
            f"{len(request.prompt_ids)} + {request.max_tokens}: shorten the prompt or lower max_tokens"
        )
    check_sampling(request.sampling)


def _check_limits(limits: EngineLimits, decoder: Decoder) -> None:
    """Refuse limits that could not work, with what to change."""
    if not 1 <= limits.slots <= limits.step_tokens:
        raise errors.BadConfig(
            f"expected 1 <= slots <= step_tokens, found {limits.slots} and {limits.step_tokens}: "
            "raise router.step_tokens"
        )
    config = decoder.config
    dispatch_bytes = limits.step_tokens * max(config.experts_per_token, 1) * config.hidden_size * decoder.dtype.itemsize
    if dispatch_bytes > MAX_MESSAGE_BYTES // 2:
        raise errors.BadConfig(
            f"expected a step's dispatch within {MAX_MESSAGE_BYTES // 2} bytes, found {dispatch_bytes} for "
            f"{limits.step_tokens} tokens: lower router.step_tokens"
        )


def _wants_prompt_logprobs(item: Work) -> bool:
    return item.sequence.is_prefilling and item.sequence.request.prompt_logprobs is not None


def _span(item: Work) -> Span:
    sequence = item.sequence
    assert sequence.cache is not None
    ids = sequence.ids[sequence.num_computed : sequence.num_computed + item.num_tokens]
    return Span(sequence.cache, sequence.num_computed, ids, wants_all_logits=_wants_prompt_logprobs(item))
