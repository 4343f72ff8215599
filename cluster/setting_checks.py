"""Checks that several sections of the settings share."""

from __future__ import annotations

from protos.errors import BadConfig


def check_floor(name: str, value: float | None, floor: float) -> None:
    """Refuse a value below a floor; None is derived later.

    Raises:
        BadConfig: it is below.
    """
    if value is not None and not value >= floor:
        raise BadConfig(f"{name}: expected at least {floor:g}, found {value:g}; raise it")


def check_seconds(name: str, value: float) -> None:
    """Refuse a time that is none.

    Raises:
        BadConfig: it is not positive, or not finite.
    """
    if not 0 < value < float("inf"):
        raise BadConfig(f"{name}: expected a positive number of seconds, found {value:g}; set one")
