"""Traces of real servers: when requests came and how long they were.

Two formats, told apart by their first line:

* Azure (github.com/Azure/AzurePublicDataset, LLM inference traces of 2023 and 2024): CSV with the columns TIMESTAMP
  (date and time), ContextTokens and GeneratedTokens.
* Mooncake (github.com/kvcache-ai/Mooncake, FAST25-release/traces): a JSON object per line with timestamp (ms),
  input_length, output_length and hash_ids, one id per block of 512 prompt tokens; equal ids are equal prefixes.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from cluster.bench.lengths import MAX_TOKENS
from protos.errors import InvalidRequest

BLOCK_TOKENS = 512
"""Prompt tokens that one hash id of a Mooncake trace stands for."""
_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceRow:
    """One request of a trace."""

    at_s: float
    """Seconds after the first request of the trace."""
    input_tokens: int
    """Length of the prompt; at least 1."""
    output_tokens: int
    """Length of the answer; at least 1."""
    hash_ids: tuple[int, ...] | None = None
    """One per block of the prompt; None: the trace does not tell."""


def read_trace(path: Path, limit: int | None = None) -> list[TraceRow]:
    """Return a trace's first rows in the order of their times, the earliest at 0.

    Lengths of 0, which Azure's traces have, count as 1.

    Args:
        path: the file.
        limit: most rows to read; None: all.

    Raises:
        InvalidRequest: it cannot be read, or a line is not what the format says.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(islice(_rows(file, path), limit))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"--trace: expected a text file, found {path}: {error}") from error
    if not rows:
        raise InvalidRequest(f"{path}: expected at least one request, found none: give another trace")
    rows.sort(key=lambda row: row.at_s)
    start_s = rows[0].at_s
    return [replace(row, at_s=row.at_s - start_s) for row in rows]


def _rows(file: TextIO, path: Path) -> Iterator[TraceRow]:
    first = file.readline()
    file.seek(0)
    if first.lstrip("\ufeff").lstrip().startswith("{"):
        return _mooncake_rows(file, path)
    return _azure_rows(file, path)


def _azure_rows(file: TextIO, path: Path) -> Iterator[TraceRow]:
    lines = csv.reader(file)
    try:
        header = [name.strip().lstrip("\ufeff") for name in next(lines, [])]
        if missing := [name for name in _COLUMNS if name not in header]:
            found = ",".join(header) or "an empty file"
            raise _malformed(
                path, 1, f"a header with {', '.join(missing)} (Azure) or a JSON object (Mooncake)", found[:100]
            )
        at, context, generated = (header.index(name) for name in _COLUMNS)
        for fields in lines:
            if not fields:
                continue
            if len(fields) != len(header):
                raise _malformed(path, lines.line_num, f"{len(header)} fields", str(len(fields)))
            yield TraceRow(
                at_s=_time_s(fields[at], path, lines.line_num),
                input_tokens=_azure_count(fields[context], "ContextTokens", path, lines.line_num),
                output_tokens=_azure_count(fields[generated], "GeneratedTokens", path, lines.line_num),
            )
    except csv.Error as error:
        raise _malformed(path, lines.line_num, "CSV", str(error)) from error


def _time_s(text: str, path: Path, line: int) -> float:
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise _malformed(path, line, "a TIMESTAMP such as 2023-11-16 18:15:46.6805900", repr(text)) from error
    # Times without a zone count as UTC: a zone of this machine's would make jumps where its clocks change.
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _azure_count(text: str, column: str, path: Path, line: int) -> int:
    digits = text.strip()
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > len(str(MAX_TOKENS)):
        raise _malformed(path, line, f"{column} as a whole number", repr(text[:100]))
    return max(int(digits), 1)


def _mooncake_rows(file: TextIO, path: Path) -> Iterator[TraceRow]:
    for line, text in enumerate(file, 1):
        text = text.strip().lstrip("\ufeff")
        if not text:
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _malformed(path, line, "a JSON object", repr(text[:100])) from error
        if not isinstance(row, dict):
            raise _malformed(path, line, "a JSON object", repr(text[:100]))
        yield _mooncake_row(row, path, line)


def _mooncake_row(row: dict[str, Any], path: Path, line: int) -> TraceRow:
    at_ms = row.get("timestamp")
    if isinstance(at_ms, bool) or not isinstance(at_ms, int | float) or not (0 <= at_ms < math.inf):
        raise _malformed(path, line, "timestamp in milliseconds, from 0 up", _shown(row, "timestamp"))
    for name in ("input_length", "output_length"):
        if type(row.get(name)) is not int or not 0 <= row[name] <= MAX_TOKENS:
            raise _malformed(path, line, f"{name} as a whole number of tokens", _shown(row, name))
    input_tokens = max(row["input_length"], 1)
    hash_ids = row.get("hash_ids")
    if hash_ids is not None:
        if not isinstance(hash_ids, list) or any(type(each) is not int or each < 0 for each in hash_ids):
            raise _malformed(path, line, "hash_ids as a list of whole numbers from 0 up", _shown(row, "hash_ids"))
        blocks = -(-input_tokens // BLOCK_TOKENS)
        if len(hash_ids) != blocks:
            expected = f"{blocks} hash_ids for {input_tokens} tokens in blocks of {BLOCK_TOKENS}"
            raise _malformed(path, line, expected, str(len(hash_ids)))
    return TraceRow(
        at_s=at_ms / 1000,
        input_tokens=input_tokens,
        output_tokens=max(row["output_length"], 1),
        hash_ids=None if hash_ids is None else tuple(hash_ids),
    )


def _shown(row: dict[str, Any], name: str) -> str:
    return repr(row[name])[:100] if name in row else "none"


def _malformed(path: Path, line: int, expected: str, found: str) -> InvalidRequest:
    return InvalidRequest(f"{path}, line {line}: expected {expected}, found {found}: correct the trace")
