"""How every process of Herd logs: lines on the standard error stream, in one format, from one level on.

A line has a message and, where it is given `extra=fields(...)`, names with values. Those of a request name it as its
client does (`request_id`), those of a sequence by a longer name with that one in it. No line has text of prompts or
answers.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TextIO

from cluster.config import LogSettings

PACKAGES = ("cluster", "context", "experts", "models", "protos", "router")
"""Whose lines `log.level` is for; of all others there are warnings and errors."""
_FIELDS = "fields"
_ESCAPED = {code: f"\\u{code:04x}" for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}
"""Line ends and what terminals obey: a name that a peer chose must not write lines of its own. As JSON escapes them."""


def fields(**values: object) -> dict[str, object]:
    """Return `extra` of a line that has these fields; None values are left out."""
    return {_FIELDS: {name: value for name, value in values.items() if value is not None}}


def configure_logs(settings: LogSettings, stream: TextIO | None = None) -> logging.Handler:
    """Set up this process' logging; a second call replaces what the first one did.

    Args:
        settings: format and level.
        stream: where to; None: the standard error stream.

    Returns:
        What writes the lines.
    """
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _LineHandler):
            root.removeHandler(handler)
    lines = _LineHandler(stream or sys.stderr)
    lines.setFormatter(JsonLines() if settings.format == "json" else TextLines())
    root.addHandler(lines)
    for name in PACKAGES:
        logging.getLogger(name).setLevel(settings.level.upper())
    return lines


class _LineHandler(logging.StreamHandler[TextIO]):
    """Ours, and nobody else's."""


class TextLines(logging.Formatter):
    """`time level logger message name=value ...`, for people."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return a line without its traceback, which the caller adds."""
        found = getattr(record, _FIELDS, {})
        record.message = record.message.translate(_ESCAPED)
        return super().formatMessage(record) + "".join(f" {name}={_text(value)}" for name, value in found.items())


class JsonLines(logging.Formatter):
    """One JSON object in one line, for collectors: time, level, logger, pid, message, the fields, exception."""

    converter = staticmethod(time.gmtime)
    default_time_format = TextLines.default_time_format
    default_msec_format = TextLines.default_msec_format

    def format(self, record: logging.LogRecord) -> str:
        """Return a line."""
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str).translate(_ESCAPED)


def _text(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text if text.isprintable() and text and not set(text) & set(' "=') else json.dumps(text)
