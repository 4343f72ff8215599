"""The file of API keys: names, hashes and quotas. No key itself is ever in it."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import stat
from pathlib import Path
from typing import Annotated

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from protos.errors import BadConfig

_LOG = logging.getLogger(__name__)
# libyaml's where PyYAML was built with it: a long file would stall streams for a second otherwise.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MOST_KEYS = 4096
"""Entries of one file: each presented key is compared with all of them."""
MAX_KEY_BYTES = 512
"""Longest key that is looked at."""
_KEY_BYTES = 32
_PREFIX = "herd-"


class KeyEntry(BaseModel):
    """One key: whose it is, and what it may do."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    name: Annotated[str, Field(min_length=1, max_length=128)]
    """Whose it is; unique. A quota belongs to the name, so a key can be replaced under it."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of the key, in hexadecimal. Enough for keys that are random, as `herd keys new` makes them: 256 bits
    cannot be guessed, however fast a hash is. Of a word that somebody chose it would be no protection."""
    admin: bool = False
    """May also see `/metrics`, the status page and what `herd status` shows."""
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Requests a minute at each front door; None: no limit."""
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Tokens of prompts and answers a minute at each front door; None: no limit."""
    streams: Annotated[int, Field(ge=1)] | None = None
    """Sequences (prompts times `n`) at once at each front door; None: no limit."""
    best_priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    """Lowest `priority` its requests may ask for: lower numbers go first, and may take the places of those that run."""
    even_share: bool = False
    """While other keys' requests run, get no more tokens in a router's step than the one with the fewest sequences."""


_ENTRIES = TypeAdapter(list[KeyEntry])


def key_hash(key: str) -> str:
    """Return what the file holds of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """Return a random key of 256 bits."""
    return _PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def read_key_file(file: Path) -> tuple[KeyEntry, ...]:
    """Return a file's entries.

    Raises:
        BadConfig: it cannot be read, is empty, an entry is wrong, or two have one name.
    """
    try:
        if file.stat().st_mode & stat.S_IWOTH:
            _LOG.warning("auth.keys_file: everybody on this machine may write %s, and so give themselves a key", file)
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"auth.keys_file: expected a readable file, found {file}: {error}; check the path") from error
    entries = parse_keys(text, str(file))
    if not entries:
        # As when somebody writes it anew in place: for a moment, nobody would have a key.
        raise BadConfig(f"{file}: expected a list of keys, found none; add one, or stop the server")
    return entries


def parse_keys(text: str, source: str) -> tuple[KeyEntry, ...]:
    """Return the entries that a text in YAML or JSON lists.

    Raises:
        BadConfig: an entry is wrong, two have one name, or there are too many. No value is repeated: it may be a key.
    """
    try:
        found = yaml.load(text, _LOADER)
        entries = _ENTRIES.validate_python([] if found is None else found)
    except yaml.YAMLError as error:
        raise BadConfig(f"{source}: expected YAML or JSON, found neither; correct it") from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False)[0]
        place = ".".join(str(each) for each in first["loc"]) or "the file"
        raise BadConfig(
            f"{source}: {place}: {first['msg']}; expected a list of entries with name, sha256 and quotas, see "
            "docs/security.md"
        ) from None
    for what in ("name", "sha256"):
        values = [getattr(each, what) for each in entries]
        if len(set(values)) != len(values):
            raise BadConfig(f"{source}: expected every {what} once, found one twice; take one of the two out")
    if len(entries) > MOST_KEYS:
        raise BadConfig(f"{source}: expected at most {MOST_KEYS} keys, found {len(entries)}; put a gateway in front")
    return tuple(entries)


def add_key(file: Path, entry: KeyEntry) -> None:
    """Add an entry to a file, which is made if there is none; what the file says besides stays as it is.

    Raises:
        BadConfig: the file is wrong, has the name already, or is no list of YAML that one can append to.
    """
    old = file.read_text(encoding="utf-8") if file.exists() else ""
    before = parse_keys(old, str(file))
    if any(each.name == entry.name for each in before):
        raise BadConfig(f"{file}: expected a new name, found {entry.name!r} there already; take its entry out first")
    added = yaml.safe_dump([entry.model_dump(exclude_defaults=True)], sort_keys=False)
    text = old + ("\n" if old and not old.endswith("\n") else "") + added
    try:
        after = parse_keys(text, str(file))
    except BadConfig:
        after = ()
    if len(after) != len(before) + 1:
        raise BadConfig(f"{file}: expected a list in YAML, an entry a line with a dash, found another form; rewrite it")
    # Whoever reads it meanwhile sees the old file or the new one.
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as writing:
        writing.write(text)
    if old:
        beside.chmod(file.stat().st_mode & 0o777)
    beside.replace(file)
