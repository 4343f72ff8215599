"""Certificates, read again when their files change: for servers of gRPC and HTTP, and for clients of gRPC.

Whoever rotates files writes them one after the other, so for a moment they may not belong together: what was last good
stays in use until they do.
"""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc

from protos.errors import BadConfig
from protos.watched_files import WatchedFiles

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TlsFiles:
    """Where a process's certificates are, all in PEM."""

    cert: Path
    """Its own, with the intermediate ones up to its authority's."""
    key: Path
    """Of its certificate, not encrypted."""
    ca: Path | None = None
    """Of the authorities whose certificates the other side must have; None: it needs none."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The contents of files that belong together."""

    cert: bytes
    key: bytes
    ca: bytes | None
    context: ssl.SSLContext
    """For servers of HTTP."""


class Identity:
    """Who this process is to others, and whom it believes. Any thread may use it.

    Args:
        files: where certificates are.

    Raises:
        BadConfig: they cannot be read, or do not belong together.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._watched = WatchedFiles(each for each in (files.cert, files.key, files.ca) if each is not None)
        self._loaded = _load(files)

    def server_context(self) -> ssl.SSLContext:
        """Return a context for servers that live longer than a certificate."""
        context = _server_context(self._files)

        def use_newest(connection: ssl.SSLObject | ssl.SSLSocket, _: object, __: object) -> None:
            connection.context = self._newest().context

        # Called at the start of every handshake, whether or not the client names a server.
        context.sni_callback = use_newest
        return context

    def server_credentials(self) -> grpc.ServerCredentials:
        """Return credentials for a server that lives longer than a certificate; with a `ca`, clients need one too."""
        used = self._loaded

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal used
            newest = self._newest()
            if newest is used:
                return None
            used = newest
            return _configuration(newest)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(used),
            fetch,  # type: ignore[arg-type]  # None: no change, as its documentation says
            require_client_authentication=self._files.ca is not None,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return credentials for one channel, with what is newest now."""
        newest = self._newest()
        return grpc.ssl_channel_credentials(newest.ca, newest.key, newest.cert)

    def _newest(self) -> _Loaded:
        """Return the files' contents, read again if they are others than a moment ago."""
        with self._lock:
            if (stamps := self._watched.changed()) is not None:
                try:
                    self._loaded = _load(self._files)
                except BadConfig as error:
                    # Tried again next time: the other file may be on its way.
                    _LOG.error("certificates stay as they were: %s", error.message)
                else:
                    self._watched.settle(stamps)
                    _LOG.info("certificates were read again: %s", self._files.cert)
            return self._loaded


def _load(files: TlsFiles) -> _Loaded:
    context = _server_context(files)
    try:
        ca = None if files.ca is None else files.ca.read_bytes()
        return _Loaded(files.cert.read_bytes(), files.key.read_bytes(), ca, context)
    except OSError as error:
        raise _unusable(files, error) from error


def _server_context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A session taken up again would not have its client's certificate checked anew.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    try:
        # An encrypted key must not make a server ask its terminal.
        context.load_cert_chain(files.cert, files.key, password="")
        if files.ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(files.ca)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise _unusable(files, error) from error
    return context


def _unusable(files: TlsFiles, error: Exception) -> BadConfig:
    names = ", ".join(str(each) for each in (files.cert, files.key, files.ca) if each is not None)
    return BadConfig(
        f"expected a certificate in PEM, its key without password and authorities, found {names} unusable: {error}; "
        "correct the files"
    )


def _configuration(loaded: _Loaded) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(loaded.key, loaded.cert)], loaded.ca)
