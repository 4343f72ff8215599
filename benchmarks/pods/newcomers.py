"""Clients that come once: each request on a connection of its own, and no second attempt."""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass

_PERIOD_S = 0.2
_TIMEOUT_S = 120.0
_ASKED = json.dumps(
    {"prompt": "What does str.join do?", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
).encode()


@dataclass(frozen=True, kw_only=True, slots=True)
class Visit:
    """One of them."""

    at_s: float
    """When it came, by the monotonic clock."""
    took_s: float
    """How long it stayed."""
    answer: str
    """The generated text; empty: it got none."""
    problem: str
    """Why not; empty: it did."""


class Newcomers:
    """Context manager: one comes after the other inside it, from several threads.

    Args:
        host: of the HTTP API.
        port: likewise.
        at_once: how many there may be at a time.
    """

    def __init__(self, host: str, port: int, at_once: int = 4) -> None:
        self.visits: list[Visit] = []
        self._address = host, port
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(at_once)]

    @property
    def turned_away(self) -> list[Visit]:
        """Return those that got no answer."""
        return [each for each in self.visits if each.problem]

    def __enter__(self) -> Newcomers:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for each in self._threads:
            each.join(_TIMEOUT_S)

    def _run(self) -> None:
        while not self._stopping.wait(_PERIOD_S):
            self.visits.append(visit(*self._address))


def visit(host: str, port: int) -> Visit:
    """Come, ask, go."""
    began = time.monotonic()
    answer = problem = ""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("POST", "/v1/completions", _ASKED, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
        if response.status == http.client.OK:
            answer = json.loads(text)["choices"][0]["text"]
        else:
            problem = f"{response.status} {text[:200]}"
    except (OSError, http.client.HTTPException) as error:
        problem = f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return Visit(at_s=began, took_s=time.monotonic() - began, answer=answer, problem=problem)
