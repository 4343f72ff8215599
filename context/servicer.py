"""The shard's RPCs: Attend, Describe."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import grpc

from context.attention import Append, Query
from context.shard import Shard
from protos import errors
from protos.codec import decode_tensor, write_tensor
from protos.context.v1 import context_pb2, context_pb2_grpc
from protos.traced import TellAnswer, TracedAnswer

_LOG = logging.getLogger(__name__)
_MAX_ROUTER_ID_BYTES = 128


class ContextServicer(context_pb2_grpc.ContextServiceServicer):
    """Puts a shard behind herd.context.v1.ContextService.

    Args:
        shard: who computes.
        trace: is told of answers to steps that name a span; None: nobody makes spans here.
    """

    def __init__(self, shard: Shard, *, trace: TellAnswer | None = None) -> None:
        self._shard = shard
        self._trace = trace

    def Attend(
        self, requests: Iterator[context_pb2.AttendRequest], context: grpc.ServicerContext
    ) -> Iterator[context_pb2.AttendResponse]:
        """Serve one stream: what a step needs was sent before it on the same stream, so one thread does all."""
        try:
            router_id, welcome = self._greet(next(requests, context_pb2.AttendRequest()))
        except errors.ServingError as error:
            context.set_trailing_metadata(error.trailing_metadata())
            context.abort(error.grpc_code, error.message)
        try:
            yield context_pb2.AttendResponse(welcome=welcome)
            for request in requests:
                if request.WhichOneof("message") == "release":
                    free_tokens = self._shard.release((router_id, each) for each in request.release.segment_ids)
                    yield context_pb2.AttendResponse(room=context_pb2.Room(free_tokens=free_tokens))
                else:
                    yield self._answer(router_id, request.step)
        except grpc.RpcError:
            _LOG.info("router %s went away", router_id)
        finally:
            self._shard.leave(router_id)

    def Fill(self, request: context_pb2.FillRequest, context: grpc.ServicerContext) -> context_pb2.FillResponse:
        """Fill a segment with random keys and values."""
        try:
            free_tokens = self._shard.fill((request.router_id, request.segment_id), max(request.num_tokens, 1))
        except errors.ServingError as error:
            context.set_trailing_metadata(error.trailing_metadata())
            context.abort(error.grpc_code, error.message)
        return context_pb2.FillResponse(free_tokens=free_tokens)

    def Describe(
        self, request: context_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> context_pb2.DescribeResponse:
        """Tell what is held."""
        return self._shard.describe()

    def _greet(self, request: context_pb2.AttendRequest) -> tuple[str, context_pb2.Welcome]:
        if request.WhichOneof("message") != "hello":
            raise errors.BadDispatch(
                "expected hello as the stream's first message, found none: send it before all else"
            )
        router_id = request.hello.router_id
        if not 1 <= len(router_id.encode()) <= _MAX_ROUTER_ID_BYTES:
            raise errors.BadDispatch(
                f"router_id: expected 1 to {_MAX_ROUTER_ID_BYTES} bytes, found {len(router_id.encode())}: segments "
                "belong to it"
            )
        return router_id, self._shard.welcome(router_id, request.hello.model_fingerprint)

    def _answer(self, router_id: str, step: context_pb2.Step) -> context_pb2.AttendResponse:
        """Run a step; whatever goes wrong concerns this step alone."""
        started_s = time.perf_counter()
        try:
            response, error = self._run(router_id, step, started_s), None
        except errors.ServingError as failure:
            response, error = _failed(step.step_id, failure), failure
        if self._trace is not None and step.traceparent:
            self._trace(_traced(step, time.perf_counter() - started_s, error))
        return response

    def _run(self, router_id: str, step: context_pb2.Step, started_s: float) -> context_pb2.AttendResponse:
        """Return a step's result.

        Raises:
            ServingError: it cannot be run.
        """
        response = context_pb2.AttendResponse()
        try:
            appends = [self._append(router_id, each) for each in step.appends]
            queries = [self._query(router_id, each) for each in step.queries]
            partials, free_tokens = self._shard.run(step.layer, appends, queries)
        except errors.ServingError:
            raise
        except Exception as error:  # the process boundary: a bug fails this step and no other
            _LOG.exception("step of router %s failed", router_id)
            raise errors.InternalError(f"the step failed: {type(error).__name__}: {error}") from error
        result = response.result
        result.step_id = step.step_id
        for outputs_HTC, log_sums_HT in partials:
            partial = result.partials.add()
            write_tensor(partial.outputs, outputs_HTC.contiguous())
            write_tensor(partial.log_sums, log_sums_HT.contiguous())
        result.free_tokens = free_tokens
        result.compute_us = round((time.perf_counter() - started_s) * 1e6)
        return response

    def _append(self, router_id: str, wire: context_pb2.Append) -> Append:
        config, dtype = self._shard.config, self._shard.dtype
        heads = config.num_kv_heads, config.head_size
        keys_TGC = decode_tensor(wire.keys, dtype=dtype, shape=(None, *heads), name="keys")
        values_TGC = decode_tensor(wire.values, dtype=dtype, shape=(keys_TGC.shape[0], *heads), name="values")
        if not keys_TGC.shape[0]:
            raise errors.BadDispatch("appends: expected at least one token, found none: leave it out")
        return Append((router_id, wire.segment_id), wire.start, keys_TGC, values_TGC)

    def _query(self, router_id: str, wire: context_pb2.Query) -> Query:
        config = self._shard.config
        shape = (None, config.num_heads, config.head_size)
        queries_THC = decode_tensor(wire.queries, dtype=self._shard.dtype, shape=shape, name="queries")
        views = tuple(((router_id, view.segment_id), view.num_tokens) for view in wire.views)
        if not queries_THC.shape[0] or not views or not all(num_tokens for _, num_tokens in views):
            raise errors.BadDispatch(
                f"queries: expected tokens and views of at least one token, found {queries_THC.shape[0]} tokens and "
                f"{len(views)} views: leave out what is empty"
            )
        return Query(queries_THC, views)


def _failed(step_id: int, error: errors.ServingError) -> context_pb2.AttendResponse:
    failure = context_pb2.StepError(step_id=step_id, code=error.grpc_code.value[0], detail=error.detail())
    return context_pb2.AttendResponse(error=failure)


def _traced(step: context_pb2.Step, seconds: float, error: errors.ServingError | None) -> TracedAnswer:
    """Return what to tell of a step that names a span."""
    return TracedAnswer(
        traceparent=step.traceparent,
        layer=step.layer,
        num_tokens=sum(query.queries.shape[0] for query in step.queries if query.queries.shape),
        seconds=seconds,
        compute_s=seconds,
        error=error,
    )
