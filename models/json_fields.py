"""Strict reading of JSON files: one object, finite numbers, no key twice, every value checked where it is read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from protos.errors import BadConfig


def parse_json_object(text: str | bytes) -> dict[str, Any]:
    """Return the object a JSON text holds.

    Python's own parser also takes NaN, Infinity and repeated keys, where the last one silently wins.

    Raises:
        ValueError: the text is not exactly one JSON object with finite numbers and distinct keys.
    """
    try:
        value = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_distinct_pairs
        )
    except RecursionError:
        raise ValueError("brackets nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} instead of an object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits} does not fit a float")
    return value


def _distinct_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return fields


class JsonFields:
    """The fields of one JSON object, each read with its type and range; null counts as absent.

    Args:
        values: the parsed object.
        file: where it came from, for messages.
        prefix: path of this object inside the file, for messages; for example "text_config.".
    """

    def __init__(self, values: dict[str, Any], file: Path, prefix: str = "") -> None:
        self._values = values
        self.file = file
        self._prefix = prefix

    @classmethod
    def load(cls, file: Path) -> JsonFields:
        """Return the fields of a file.

        Raises:
            BadConfig: it cannot be read or is not a JSON object.
        """
        try:
            return cls(parse_json_object(file.read_bytes()), file)
        except OSError as error:
            raise BadConfig(f"{file}: expected a readable file, found: {error.strerror}") from error
        except ValueError as error:
            raise BadConfig(f"{file}: expected a JSON object, found: {error}: download the file again") from error

    def fail(self, key: str, expected: str) -> BadConfig:
        """Return the error that says a key's value is not what was expected."""
        found = repr(self._values[key]) if key in self._values else "nothing"
        return BadConfig(f"{self.file}: expected {self._prefix}{key} to be {expected}, found {found}: correct the file")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def has(self, key: str) -> bool:
        """Tell whether a key is there and not null."""
        return self._values.get(key) is not None

    def is_set(self, key: str) -> bool:
        """Tell whether a key is there with anything but null, false or something empty."""
        return bool(self._values.get(key))

    def child(self, key: str) -> JsonFields | None:
        """Return a nested object; None: absent."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fail(key, "an object")
        return JsonFields(value, self.file, f"{self._prefix}{key}.")

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string; without a default it must be there."""
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.fail(key, "a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean. Whole numbers count as such: released files say `attn_temperature_tuning: 4`."""
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, int):
            raise self.fail(key, "true or false")
        return bool(value)

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = 2**31 - 1) -> int:
        """Return a whole number in [least, most]; without a default it must be there."""
        value: Any = self._values.get(key)
        if value is None and default is not None:
            return default
        if not _is_integer(value) or not least <= value <= most:
            raise self.fail(key, f"a whole number from {least} to {most}")
        return int(value)

    def optional_integer(self, key: str, *, least: int = 1, most: int = 2**31 - 1) -> int | None:
        """Return a whole number in [least, most]; None: absent or null."""
        return self.integer(key, least=least, most=most) if self.has(key) else None

    def number(
        self, key: str, default: float | None = None, *, above: float = 0.0, least: float | None = None
    ) -> float:
        """Return a finite number greater than `above`, or at least `least` if that is given."""
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > 1e30:
            raise self.fail(key, "a number")
        if not (value > above if least is None else value >= least):
            raise self.fail(key, f"a number above {above:g}" if least is None else f"a number of at least {least:g}")
        return float(value)

    def integers(self, key: str, *, least: int = 0, most: int = 2**31 - 1) -> tuple[int, ...] | None:
        """Return whole numbers, given as a list or as a single one; None: absent or null."""
        value = self._values.get(key)
        if value is None:
            return None
        values = value if isinstance(value, list) else [value]
        if not all(_is_integer(item) and least <= item <= most for item in values):
            raise self.fail(key, f"whole numbers from {least} to {most}")
        return tuple(values)

    def texts(self, key: str) -> tuple[str, ...] | None:
        """Return a list of strings; None: absent or null."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.fail(key, "a list of strings")
        return tuple(value)

    def refuse(self, keys: Iterable[str], why: str) -> None:
        """Refuse keys whose presence, other than as null, false or empty, means a model Herd cannot run.

        Raises:
            BadConfig: one of them is set.
        """
        for key in keys:
            if self.is_set(key):
                raise BadConfig(f"{self.file}: expected no {self._prefix}{key}, found it set: {why}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
