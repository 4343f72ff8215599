"""A gRPC call as Ray Serve's proxy sees it, that may be looked at after the call has ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

Metadata = Sequence[tuple[str, str | bytes]]


class DetachedCall:
    """Has what Ray Serve uses of a ServicerContext, read once; keeps what is set for `apply`.

    grpc frees a call when its handler is done. Asking the context for anything after that crashes the process.

    Args:
        context: of a call that has begun.
    """

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._invocation_metadata = tuple(context.invocation_metadata() or ())
        self._peer = context.peer()
        self._auth_context = context.auth_context()
        self._peer_identities = context.peer_identities()
        self._peer_identity_key = context.peer_identity_key()
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._trailing_metadata: Metadata = ()

    def invocation_metadata(self) -> Metadata:
        """Return what the client sent."""
        return self._invocation_metadata

    def peer(self) -> str:
        """Return who called."""
        return self._peer

    def auth_context(self) -> Any:
        """Return how the caller is known."""
        return self._auth_context

    def peer_identities(self) -> Any:
        """Return the caller's identities."""
        return self._peer_identities

    def peer_identity_key(self) -> Any:
        """Return which property of `auth_context` they are."""
        return self._peer_identity_key

    def code(self) -> grpc.StatusCode | None:
        """Return the status set, None while there is none."""
        return self._code

    def details(self) -> str:
        """Return the sentence set."""
        return self._details

    def trailing_metadata(self) -> Metadata:
        """Return the metadata set."""
        return self._trailing_metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the status."""
        self._code = code

    def set_details(self, details: str) -> None:
        """Set the sentence beside the status."""
        self._details = details

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        """Set the metadata beside the status."""
        self._trailing_metadata = trailing_metadata

    def apply(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Set on a call, which must not have ended, what was set here."""
        if self._code is not None:
            context.set_code(self._code)
        context.set_details(self._details)
        context.set_trailing_metadata(tuple(self._trailing_metadata))
