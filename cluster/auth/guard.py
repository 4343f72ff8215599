"""Who is behind a key, or nobody: the one place where keys are compared."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable
from pathlib import Path

from cluster.auth.key_file import MAX_KEY_BYTES, KeyEntry, key_hash, read_key_file
from cluster.auth.quota import ANYBODY, Caller
from protos.errors import BadConfig, PermissionDenied, Unauthenticated
from protos.watched_files import WatchedFiles

_LOG = logging.getLogger(__name__)
_BEARER = "bearer "


class Guard:
    """Knows the keys of a file, which it reads again when the file has changed. Belongs to one event loop.

    A file that has become unreadable or wrong changes nothing: the last good one stays in force, and the log says so.

    Args:
        file: of keys; None: nobody needs one.
        clock: monotonic seconds.

    Raises:
        BadConfig: the file is unusable.
    """

    def __init__(self, file: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._watched = WatchedFiles(() if file is None else (file,), clock)
        self._keys: list[tuple[str, Caller]] = []
        self._callers: dict[str, Caller] = {}
        if file is not None:
            self._install(read_key_file(file))

    @property
    def is_open(self) -> bool:
        """Tell whether nobody needs a key."""
        return self._file is None

    def caller(self, authorization: str | None, *, for_admin: bool = False) -> Caller:
        """Return who sent a request.

        Args:
            authorization: what the header or metadata of that name says, `Bearer KEY`; None: there is none.
            for_admin: it asks for what only an operator may see.

        Raises:
            Unauthenticated: there is no key, or nobody has it.
            PermissionDenied: it takes an operator's key.
        """
        if self.is_open:
            return ANYBODY
        self._read_again()
        found = authorization or ""
        if found[: len(_BEARER)].lower() != _BEARER:
            raise Unauthenticated(
                "expected an API key, found none; send it as `Authorization: Bearer KEY` (gRPC: metadata authorization)"
            )
        caller = self.owner(found[len(_BEARER) :].strip())
        if caller is None:
            raise Unauthenticated(
                "expected an API key of this server, found another; check it, or ask whoever runs this server for one"
            )
        if for_admin and not caller.is_admin:
            raise PermissionDenied(
                f"expected an operator's key, found that of {caller.name!r}, which has no `admin: true`; use another"
            )
        return caller

    def owner(self, key: str) -> Caller | None:
        """Return who has a key; every hash is compared, each in the same time, whichever fits."""
        owner = None
        if len(key) <= MAX_KEY_BYTES:
            presented = key_hash(key)
            for known, caller in self._keys:
                if hmac.compare_digest(known, presented):
                    owner = caller
        return owner

    def _read_again(self) -> None:
        """Read the file if it is another than a moment ago."""
        assert self._file is not None
        if (stamps := self._watched.changed()) is None:
            return
        self._watched.settle(stamps)
        try:
            self._install(read_key_file(self._file))
        except BadConfig as error:
            _LOG.error("API keys stay as they were: %s", error.message)
        else:
            _LOG.info("API keys were read again: %d", len(self._keys))

    def _install(self, entries: tuple[KeyEntry, ...]) -> None:
        """Replace the keys; who was there before keeps what they have used."""
        callers = {}
        for each in entries:
            caller = self._callers.get(each.name) or Caller(each.name, clock=self._clock)
            caller.allow(
                is_admin=each.admin,
                requests_per_minute=each.requests_per_minute,
                tokens_per_minute=each.tokens_per_minute,
                streams=each.streams,
                best_priority=each.best_priority,
                even_share=each.even_share,
            )
            callers[each.name] = caller
        self._callers = callers
        self._keys = [(each.sha256, callers[each.name]) for each in entries]
