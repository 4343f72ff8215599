"""A Kubernetes API server as far as Herd's and Ray's clients need one: real HTTP on a free port, objects in memory.

It lists, page by page out of a snapshot, and watches with resource versions and label selectors, says 410 Gone to who
is too far behind, replaces parts of objects by JSON Patch, answers SelfSubjectAccessReviews by what was forbidden, and
fails as told: refusals, dropped streams, being away.
"""

from __future__ import annotations

import json
import re
import secrets
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.certificates import Signed
from tests.kube.discovery import Object, discover, list_with_kind, with_kind

_PATH = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+/[^/]+))(?:/namespaces/(?P<namespace>[^/]+))?/(?P<kind>[a-z]+)(?:/(?P<name>[^/]+))?$"
)
_LONGEST_WATCH_S = 300.0
MOST_LISTS = 100
"""Lists whose next page is kept; who asks for that of an older one is told 410."""


@dataclass(frozen=True, slots=True)
class _Change:
    version: int
    type: str
    kind: str
    object: Object


class FakeApiServer:
    """Context manager: serves inside it. For any thread.

    Args:
        identity: its certificate, for 127.0.0.1; None: it does not encrypt.
        host: address to listen on.
    """

    def __init__(self, identity: Signed | None = None, *, host: str = "127.0.0.1") -> None:
        self._identity = identity
        self._host = host
        self.requests: list[str] = []
        """Paths with their queries, in the order they came."""
        self._changed = threading.Condition()
        self._objects: dict[tuple[str, str, str], Object] = {}
        self._log: list[_Change] = []
        self._next_pages: dict[str, tuple[int, list[Object]]] = {}
        self._version, self._oldest, self._epoch = 100, 100, 0
        self._forbidden: set[str] = set()
        self._refusals: list[tuple[int, dict[str, str]]] = []
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Return where it answers."""
        return f"{'https' if self._identity else 'http'}://{self._host}:{self.port}"

    @property
    def port(self) -> int:
        """Return where it listens."""
        return self._port

    def put(self, kind: str, found: Mapping[str, Any]) -> None:
        """Add an object, or replace the one of that name; `kind` is the plural: nodes, pods, rayservices ..."""
        meta = found["metadata"]
        key = (kind, meta.get("namespace", ""), meta["name"])
        with self._changed:
            type_ = "MODIFIED" if key in self._objects else "ADDED"
            self._objects[key] = self._note(type_, kind, found)

    def get(self, kind: str, name: str, namespace: str = "") -> Object | None:
        """Return a copy of an object; None: there is none."""
        with self._changed:
            found: Object | None = json.loads(json.dumps(self._objects.get((kind, namespace, name))))
            return found

    def names(self, kind: str, selector: str = "") -> list[str]:
        """Return the names of all objects of a kind that a selector of labels names."""
        return [each["metadata"]["name"] for each in self._select(kind, None, selector)[0]]

    def patch(self, kind: str, name: str, namespace: str, operations: Sequence[Mapping[str, Any]]) -> Object:
        """Replace parts of an object as JSON Patch says.

        Raises:
            KeyError: there is no such object, or no such part.
            ValueError: an operation is not `replace`.
        """
        with self._changed:
            key = (kind, namespace, name)
            self._objects[key] = self._note("MODIFIED", kind, _patched(self._objects[key], operations))
            return self._objects[key]

    def delete(self, kind: str, name: str, namespace: str = "") -> None:
        """Take an object out."""
        with self._changed:
            self._note("DELETED", kind, self._objects.pop((kind, namespace, name)))

    def forbid(self, *kinds: str) -> None:
        """Answer 403 for these from now on."""
        self._forbidden = set(kinds)

    def refuse(self, status: int, times: int = 1, **headers: str) -> None:
        """Answer the next requests with a failure."""
        self._refusals += [(status, headers)] * times

    def cut_short(self, times: int = 1) -> None:
        """Break off the next answers after their first bytes."""
        self._refusals += [(200, {})] * times

    def drop_streams(self) -> None:
        """Break off every watch in the middle of nothing."""
        with self._changed:
            self._epoch += 1
            self._changed.notify_all()

    def compact(self) -> None:
        """Forget all changes so far: watches and lists that resume from before them are told 410."""
        with self._changed:
            self._version += 1
            self._log.clear()
            self._next_pages.clear()
            self._oldest = self._version

    def go_away(self) -> None:
        """Stop answering; `__enter__` comes back on the same port."""
        self.drop_streams()
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
        self._server = self._thread = None

    def __enter__(self) -> FakeApiServer:
        self._server = _Server((self._host, self._port), _handler(self))
        self._port = self._server.server_address[1]
        if self._identity is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._identity.cert, self._identity.key)
            # A handshake belongs to its connection's thread: whoever is slow with it keeps nobody else waiting.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_away()

    def _note(self, type_: str, kind: str, found: Mapping[str, Any]) -> Object:
        self._version += 1
        noted: Object = json.loads(json.dumps(found))
        noted["metadata"]["resourceVersion"] = str(self._version)
        self._log.append(_Change(self._version, type_, kind, noted))
        self._changed.notify_all()
        return noted

    def _select(self, kind: str, namespace: str | None, selector: str) -> tuple[list[Object], int]:
        with self._changed:
            found = [
                each
                for (its_kind, its_namespace, _), each in self._objects.items()
                if its_kind == kind and namespace in (None, its_namespace) and _matches(each, selector)
            ]
            return found, self._version

    def _keep(self, version: int, left: list[Object]) -> str:
        """Return the `continue` for the rest of a list, as it is now."""
        token = secrets.token_hex(8)
        with self._changed:
            self._next_pages[token] = version, left
            for oldest in list(self._next_pages)[:-MOST_LISTS]:
                del self._next_pages[oldest]
        return token

    def _changes_after(self, version: int, deadline: float, epoch: int) -> list[_Change] | None:
        """Wait for changes; none: the time is over. None: the stream is dropped."""
        with self._changed:
            while self._epoch == epoch:
                if found := [each for each in self._log if each.version > version]:
                    return found
                if not self._changed.wait(max(deadline - time.monotonic(), 0)):
                    return []
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep still: clients that go in the middle are what tests are about."""


def _handler(api: FakeApiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer's body waits 40 ms for its headers' receipt

        def do_GET(self) -> None:
            api.requests.append(self.path)
            split = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(split.query).items()}
            if api._refusals:
                status, headers = api._refusals.pop(0)
                if status == 200:
                    self._answer(200, {}, {}, more_bytes=1000)
                    self.close_connection = True
                    return
                self._answer(status, _status(status, "as told"), headers)
                return
            found = _PATH.match(split.path)
            crds = [each["spec"]["names"] for each in api._select("customresourcedefinitions", None, "")[0]]
            if (document := discover(split.path, crds)) is not None:
                self._answer(200, document)
            elif split.path.rstrip("/") == "/version":
                self._answer(200, {"gitVersion": "v1.36.0"})
            elif found is None:
                self._answer(404, _status(404, "no such path"))
            elif found["kind"] in api._forbidden:
                words = f'{found["kind"]} is forbidden: User "system:serviceaccount:ai:herd" cannot list it'
                self._answer(403, _status(403, words))
            elif found["name"]:
                objects, _ = api._select(found["kind"], found["namespace"], "")
                named = [
                    with_kind(found["kind"], each, crds)
                    for each in objects
                    if each["metadata"]["name"] == found["name"]
                ]
                self._answer(200 if named else 404, named[0] if named else _status(404, f"{found['name']} not found"))
            elif query.get("watch") in ("true", "True", "1"):
                self._watch(found["kind"], found["namespace"], query)
            else:
                self._list(found["kind"], found["namespace"], query, crds)

        def do_POST(self) -> None:
            api.requests.append(self.path)
            review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = review["spec"]["resourceAttributes"]
            is_allowed = asked["resource"] not in api._forbidden
            self._answer(201, {**review, "status": {"allowed": is_allowed}})

        def do_PATCH(self) -> None:
            api.requests.append(self.path)
            operations = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found = _PATH.match(urlsplit(self.path).path)
            if found is None or not found["name"]:
                self._answer(404, _status(404, "no such path"))
                return
            try:
                self._answer(200, api.patch(found["kind"], found["name"], found["namespace"] or "", operations))
            except (KeyError, IndexError, ValueError) as error:
                self._answer(422, _status(422, f"{type(error).__name__}: {error}"))

        def _list(self, kind: str, namespace: str | None, query: dict[str, str], crds: list[Object]) -> None:
            """Answer with a page: all pages of a list are of its first one's version."""
            if token := query.get("continue"):
                kept = api._next_pages.get(token)
                if kept is None:
                    self._answer(410, _status(410, "the provided continue parameter is too old"))
                    return
                version, left = kept
            else:
                objects, version = api._select(kind, namespace, query.get("labelSelector", ""))
                left = sorted(objects, key=_key)
            page = left[: int(query.get("limit") or 0) or None]
            meta = {"resourceVersion": str(version)}
            if len(page) < len(left):
                meta["continue"] = api._keep(version, left[len(page) :])
            listed = {"metadata": meta, "items": [with_kind(kind, each, crds) for each in page]}
            self._answer(200, list_with_kind(kind, listed, crds))

        def _watch(self, kind: str, namespace: str | None, query: dict[str, str]) -> None:
            version, epoch = int(query.get("resourceVersion") or 0), api._epoch
            deadline = time.monotonic() + min(float(query.get("timeoutSeconds", _LONGEST_WATCH_S)), _LONGEST_WATCH_S)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if version < api._oldest:
                self._chunk({"type": "ERROR", "object": _status(410, f"too old resource version: {version}")})
                self._end_chunks()
                return
            while changes := api._changes_after(version, deadline, epoch):
                for each in changes:
                    version = each.version
                    its_namespace = each.object["metadata"].get("namespace", "")
                    is_meant = each.kind == kind and namespace in (None, its_namespace)
                    if is_meant and _matches(each.object, query.get("labelSelector", "")):
                        self._chunk({"type": each.type, "object": with_kind(kind, each.object, ())})
            if changes is None:
                self.close_connection = True
                self.connection.close()
                return
            self._end_chunks()

        def _chunk(self, event: Object) -> None:
            line = json.dumps(event).encode() + b"\n"
            self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")

        def _end_chunks(self) -> None:
            self.wfile.write(b"0\r\n\r\n")

        def _answer(
            self, status: int, body: Object, headers: Mapping[str, str] | None = None, more_bytes: int = 0
        ) -> None:
            """Answer; `more_bytes` are announced and never come."""
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content) + more_bytes))
            for name, value in (headers or {}).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            """Keep still."""

    return Handler


def _patched(found: Object, operations: Sequence[Mapping[str, Any]]) -> Object:
    """Return a copy with parts replaced; as in Kubernetes, what is not there cannot be replaced."""
    patched: Object = json.loads(json.dumps(found))
    for each in operations:
        if each["op"] != "replace":
            raise ValueError(f"expected the operation replace, found {each['op']}")
        *path, last = each["path"].strip("/").split("/")
        place: Any = patched
        for step in path:
            place = place[int(step)] if isinstance(place, list) else place[step]
        if last not in place:
            raise KeyError(each["path"])
        place[last] = each["value"]
    return patched


def _key(found: Object) -> str:
    return f"{found['metadata'].get('namespace', '')}/{found['metadata']['name']}"


def _matches(found: Object, selector: str) -> bool:
    """Tell whether an object has all labels of a selector: `a=b`, `a==b`, `a!=b` or `a`, joined by commas."""
    labels = found["metadata"].get("labels", {})
    for term in filter(None, selector.split(",")):
        if "!=" in term:
            name, value = term.split("!=")
            if labels.get(name) == value:
                return False
        elif "=" in term:
            name, _, value = term.partition("=")
            if labels.get(name) != value.removeprefix("="):
                return False
        elif term not in labels:
            return False
    return True


def _status(code: int, message: str) -> Object:
    reasons = {403: "Forbidden", 404: "NotFound", 410: "Expired", 422: "Invalid", 429: "TooManyRequests"}
    return {"kind": "Status", "code": code, "reason": reasons.get(code, "InternalError"), "message": message}
