"""A stream that is opened anew whenever it breaks: one thread that connects, reads and waits before the next try."""

from __future__ import annotations

import logging
import threading

import grpc

from protos import errors
from protos.channel import open_channel
from protos.tls import Identity

_LOG = logging.getLogger(__name__)
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.05, 2.0
_JOIN_S = 5.0


class ReconnectingStream:
    """Keeps a stream to a peer open until closed; a kind says what a session is.

    Args:
        name: of the thread.
        identity: what to show and to believe; None: no encryption.
    """

    ended = "closed the stream"
    """What messages say of a peer that ended the stream."""

    def __init__(self, name: str, identity: Identity | None = None) -> None:
        self._identity = identity
        self._call: grpc.Call | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def reset(self) -> None:
        """Break a stream that no longer answers, so that it is opened anew."""
        call = self._call
        if call is not None:
            call.cancel()

    def close(self) -> None:
        """Close for good and fail what is pending. Idempotent; returns when the thread has ended."""
        self._closing.set()
        self.reset()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=_JOIN_S)

    @property
    def peer(self) -> str:
        """Return how messages call the peer."""
        raise NotImplementedError

    def _target(self) -> str:
        """Return the address to connect to."""
        raise NotImplementedError

    def _session(self, channel: grpc.Channel) -> None:
        """Run one stream to its end, its call in `_call`; return when the peer ended it, raise RpcError if it broke."""
        raise NotImplementedError

    def _break(self, failure: errors.ServingError) -> bool:
        """Fail what is pending; tell whether the stream had been usable."""
        raise NotImplementedError

    def _explain(self, error: grpc.RpcError) -> errors.ServingError:
        """Return what a broken call means."""
        return errors.from_rpc_error(error, self.peer)

    def _run(self) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while not self._closing.is_set():
            failure: errors.ServingError = errors.ReplicaUnavailable(f"{self.peer} {self.ended}")
            try:
                with open_channel(self._target(), self._identity) as channel:
                    self._session(channel)
            except grpc.RpcError as error:
                failure = self._explain(error)
            except Exception:  # noqa: BLE001 the process boundary: whatever a peer sent, this thread must live on
                _LOG.exception("stream to %s failed", self.peer)
                failure = errors.ReplicaUnavailable(f"{self.peer} sent what cannot be read: see the router's log")
            was_ready = self._break(failure)
            backoff_s = _FIRST_BACKOFF_S if was_ready else min(backoff_s * 2, _LONGEST_BACKOFF_S)
            if not self._closing.is_set():
                _LOG.info("stream to %s %s: %s", self.peer, "broke" if was_ready else "did not open", failure)
                self._closing.wait(backoff_s)
