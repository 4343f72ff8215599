"""Server-sent events, as far as OpenAI's API uses them."""

from __future__ import annotations


class SseParser:
    """Cuts a byte stream into the data of its events. Comments and fields other than `data` are left out.

    Source: WHATWG HTML, 9.2.6 "Interpreting an event stream"; lines end in LF or CRLF, never in CR alone.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """Return the data of the events that are complete now.

        Args:
            data: the next bytes, cut anywhere.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        events = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events
