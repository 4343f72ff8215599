"""Where settings come from: defaults, then a YAML or JSON file, then `section.key=value` from the command line."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from pydantic import TypeAdapter, ValidationError

from cluster.config import ClusterConfig
from protos.errors import BadConfig

Given = Mapping[str, Mapping[str, object]]
"""Values by section and key."""


def load_config(file: Path | None = None, assignments: Iterable[str] = ()) -> ClusterConfig:
    """Return the settings in force.

    Args:
        file: YAML or JSON, sections as in ClusterConfig; None: none.
        assignments: each `section.key=value`, the value in YAML; they win over the file.

    Raises:
        BadConfig: a setting is unknown, of the wrong type or out of range, or the file cannot be read.
    """
    config = ClusterConfig()
    if file is not None:
        config = with_values(config, _read_file(file), source=f"{file}: ")
    for assignment in assignments:
        config = with_values(config, _parse_assignment(assignment), source="")
    config.check()
    return config


def with_values(config: ClusterConfig, given: Given, *, source: str) -> ClusterConfig:
    """Return the settings with some replaced.

    Args:
        config: the others.
        given: what to replace.
        source: put before messages.

    Raises:
        BadConfig: a setting is unknown or of the wrong type.
    """
    for section, values in given.items():
        _check_known(section, [each.name for each in dataclasses.fields(ClusterConfig)], f"{source}section")
        old = getattr(config, section)
        if not isinstance(values, Mapping):
            raise BadConfig(f"{source}{section}: expected keys and values, found {values!r}; indent them below it")
        types = typing.get_type_hints(type(old))
        parsed = {}
        for key, value in values.items():
            _check_known(key, list(types), f"{source}{section}: setting")
            parsed[key] = _parse_value(value, types[key], f"{source}{section}.{key}")
        config = dataclasses.replace(config, **{section: dataclasses.replace(old, **parsed)})
    return config


def knobs() -> list[str]:
    """Name every setting, `section.key`, in the order of ClusterConfig."""
    config = ClusterConfig()
    sections = [(each.name, getattr(config, each.name)) for each in dataclasses.fields(config)]
    return [f"{name}.{each.name}" for name, section in sections for each in dataclasses.fields(section)]


def _read_file(file: Path) -> Given:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"{file}: expected a readable file, found: {error}; check the path") from error
    except yaml.YAMLError as error:
        raise BadConfig(f"{file}: expected YAML or JSON, found: {' '.join(str(error).split())}; correct it") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BadConfig(f"{file}: expected sections with settings, found {type(found).__name__}; see docs/settings.md")
    return found


def _parse_assignment(assignment: str) -> Given:
    name, equals, text = assignment.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and key):
        raise BadConfig(f"expected section.key=value, found {assignment!r}; for example router.slots=8")
    try:
        return {section: {key: yaml.safe_load(text)}}
    except yaml.YAMLError as error:
        raise BadConfig(f"{name}: expected a value in YAML, found {text!r}; quote it") from error


def _check_known(name: object, known: list[str], what: str) -> None:
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=1)
        advice = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        raise BadConfig(f"{what} {name!r} is not known: {advice}")


def _parse_value(value: object, kind: Any, name: str) -> object:
    # A file that says `port: yes` does not mean port 1.
    if isinstance(value, bool) and kind is not bool:
        raise BadConfig(f"{name}: expected {_kind_name(kind)}, found {str(value).lower()}; correct it")
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        found = "null" if value is None else repr(value)
        raise BadConfig(f"{name}: expected {_kind_name(kind)}, found {found}; correct it") from None


def _kind_name(kind: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    if choices := typing.get_args(kind):
        is_literal = typing.get_origin(kind) is typing.Literal
        return " or ".join(repr(each) if is_literal else _kind_name(each) for each in choices)
    return words.get(kind, str(kind)) if isinstance(kind, type) else str(kind)
