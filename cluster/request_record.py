"""What became of a request: counted once, and told in one line of the log, when it ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.choice import Choice
from cluster.front_door_metrics import FrontDoorMetrics
from cluster.logs import fields
from cluster.refused_lines import RefusedLines
from cluster.request_id import RequestId
from cluster.validation import CompletionRequest
from protos.errors import RequestError, ServingError

if TYPE_CHECKING:
    from cluster.tracing import RequestSpan

_SERVER_ERROR = 500
_LOG = logging.getLogger(__name__)


class RequestRecord:
    """One request, from its first byte to its end.

    Args:
        metrics: of the front door.
        api: completions, chat or grpc.
        request_id: its name.
        span: of it; None: it is not traced.
        refused: bounds the lines of requests that are refused; None: nobody does.
    """

    def __init__(
        self,
        metrics: FrontDoorMetrics,
        api: str,
        request_id: RequestId,
        span: RequestSpan | None = None,
        refused: RefusedLines | None = None,
    ) -> None:
        self.request_id = request_id
        self.error: ServingError | None = None
        """Why it failed."""
        self._metrics = metrics
        self._api = api
        self._span = span
        self._refused = refused
        self._began_s = time.monotonic()
        self._num_prompt_tokens: int | None = None
        self._choices: Sequence[Choice] | None = None

    @property
    def traceparent(self) -> str:
        """Return what spans of its sequences name as their parent; empty: it is not traced."""
        return "" if self._span is None else self._span.traceparent

    def admitted(self, request: CompletionRequest, choices: Sequence[Choice]) -> None:
        """Take note that it passed every check.

        Args:
            request: as checked.
            choices: what it is to bring; looked at when it ends.
        """
        self._num_prompt_tokens, self._choices = request.num_prompt_tokens, choices
        _LOG.debug(
            "request accepted",
            extra=fields(
                request_id=self.request_id.value,
                api=self._api,
                sequence=request.request_id,
                sequences=request.num_sequences,
                prompt_tokens=request.num_prompt_tokens,
            ),
        )

    def end(self, code: str) -> None:
        """Count it and write its line.

        Args:
            code: HTTP status, or name of the gRPC status; for a stream that failed half-way, its error's.
        """
        self._metrics.count_request(self._api, code)
        choices, error = self._choices, self.error
        num_tokens = None if choices is None else sum(each.num_tokens for each in choices)
        trace_id = None if self._span is None else self._span.trace_id
        if self._span is not None:
            self._span.end(
                code,
                failed=error is not None and error.http_status >= _SERVER_ERROR,
                num_prompt_tokens=self._num_prompt_tokens,
                num_tokens=num_tokens,
            )
        if not _LOG.isEnabledFor(logging.INFO):
            return
        left_out = 0
        # Without an error, the client left before it was known what it wants.
        if self._refused is not None and choices is None and (error is None or isinstance(error, RequestError)):
            found = self._refused.next()
            if found is None:
                return
            left_out = found
        # What a request's error says may repeat what its client sent, so only its kind is told.
        reason = None if error is None or isinstance(error, RequestError) else error.message
        _LOG.info(
            "request ended",
            extra=fields(
                request_id=self.request_id.value,
                api=self._api,
                code=code,
                seconds=round(time.monotonic() - self._began_s, 4),
                prompt_tokens=self._num_prompt_tokens,
                tokens=num_tokens,
                finished=None if choices is None else _finished(choices),
                error=None if error is None else error.reason,
                reason=reason,
                left_out=left_out or None,
                trace_id=trace_id,
            ),
        )


def _finished(choices: Sequence[Choice]) -> str | None:
    """Return how choices ended, each way once."""
    return ",".join(sorted({each.finish_reason for each in choices if each.finish_reason})) or None
