"""An HTTP server that answers completions with whatever bytes a test gives it."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODELS = {"object": "list", "data": [{"id": "bad", "object": "model", "max_model_len": 64}]}


def chunk(**choice: Any) -> bytes:
    """One event of a stream of completions."""
    return event({"choices": [{"index": 0, "text": "", "finish_reason": None, **choice}]})


def event(data: object) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def usage(prompt: int, completion: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}})


DONE = b"data: [DONE]\n\n"
WHOLE = chunk(text="a") + chunk(text="b") + chunk(text="c", finish_reason="length") + usage(8, 3) + DONE


class BadServer:
    """Context manager: serves while it is entered.

    Args:
        body: what every completion is answered with.
        status: its status code.
        content_type: what it claims to be.
        missing: how many bytes fewer it sends than it announced; None: it announces nothing.
        models: what it lists.
        last: after so many completions it answers nobody any more; None: for ever.
    """

    def __init__(
        self,
        body: bytes = WHOLE,
        *,
        status: int = 200,
        content_type: str = "text/event-stream; charset=utf-8",
        missing: int | None = None,
        models: object = MODELS,
        last: int | None = None,
    ) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(200, "application/json", json.dumps(models).encode(), 0)

            def do_POST(self) -> None:
                outer.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                outer.headers.append(dict(self.headers))
                if len(outer.bodies) == last:
                    outer.refuse()
                self._answer(status, content_type, body, missing)

            def _answer(self, status: int, content_type: str, body: bytes, missing: int | None) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                if missing is not None:
                    self.send_header("Content-Length", str(len(body) + missing))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> BadServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def refuse(self) -> None:
        """Close the door: whoever connects from now on is refused."""
        self._server.socket.close()

    def prompts(self) -> Sequence[Any]:
        return [body.get("prompt") for body in self.bodies]
