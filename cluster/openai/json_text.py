"""JSON in and out: what clients send is checked harder than `json` does, what they get is always valid."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from starlette.responses import Response

from protos.errors import InvalidRequest


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse a request's body.

    Raises:
        InvalidRequest: it is not a JSON object.
    """
    try:
        value = json.loads(data, parse_constant=_refuse_constant, parse_float=_number)
    except RecursionError as error:
        raise _malformed("values nested too deeply") from error
    except UnicodeDecodeError as error:
        raise _malformed(f"bytes that are not UTF-8 at position {error.start}") from error
    except ValueError as error:  # malformed, or a number of thousands of digits
        raise _malformed(str(error) if data else "an empty body") from error
    if not isinstance(value, dict):
        raise _malformed(f"a JSON {_KINDS.get(type(value), 'value')}")
    return value


def to_json(value: object) -> bytes:
    """Write JSON as UTF-8; a lone surrogate, which UTF-8 cannot carry, becomes its JSON escape."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", errors="backslashreplace")


class JsonResponse(Response):
    """A response with a JSON body."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the body's bytes."""
        return to_json(content)


_KINDS: dict[type, str] = {list: "array", str: "string", int: "number", float: "number", bool: "boolean"}


def _number(text: str) -> int | float:
    """Return a number with a fraction or an exponent; JSON Schema calls 1.0 an integer, too."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is not a JSON number")


def _malformed(found: str) -> InvalidRequest:
    return InvalidRequest(f"body: expected a JSON object, found {found}; correct it and send it again")
