"""Follows objects of a Kubernetes cluster: list once, then watch, over whatever an API server may do meanwhile.

list -> watch, watch, ... -> 410 Gone -> list -> ...
           `- dropped, or nothing heard for too long -> watch again from the last version

Read only. The package `kubernetes` is imported where it is used: that takes most of a second.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.disruption import KubeObject
from protos.errors import BadConfig, ReplicaUnavailable

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 15.0
_FORBIDDEN_PAUSE_S = 60.0
_WATCH_S = 30
"""Seconds that one watch lasts: a connection that died silently is noticed that late."""
_CONNECT_S, _READ_S = 3.0, 10.0
_PAGE = 500
"""Objects in one answer to a list, as kubectl asks for: nodes are 10 kB and more each, and there may be thousands."""
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_GONE = 410
FORBIDDEN = (401, 403)
"""HTTP statuses that say that a right is missing."""
_STATUS = "http_status"

List = Callable[..., Any]
"""Asks for a list or a watch, as the methods of `kubernetes.client` do."""


def connect() -> Any:
    """Return a `kubernetes.client.ApiClient`: of $KUBECONFIG, else of this pod, else of ~/.kube/config.

    Raises:
        BadConfig: there is neither.
    """
    from kubernetes import client, config

    settings = client.Configuration()
    try:
        if "KUBECONFIG" not in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=settings)
        else:
            config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=settings)
    except (config.ConfigException, OSError) as error:
        raise BadConfig(
            f"expected a Kubernetes cluster in $KUBECONFIG or around this pod, found none ({error}); set KUBECONFIG"
        ) from error
    settings.retries = False  # its own retries obey any Retry-After, without a bound
    return client.ApiClient(settings)


def own_namespace() -> str:
    """Return the namespace of this pod, else of kubectl's context."""
    from kubernetes import config

    try:
        return _NAMESPACE_FILE.read_text().strip()
    except OSError:
        pass
    try:
        _, context = config.list_kube_config_contexts(os.environ.get("KUBECONFIG"))
    except (config.ConfigException, OSError):
        return "default"
    return str(context["context"].get("namespace") or "default")


def ask(list_: List, **options: Any) -> Any:
    """Return the decoded answer to a request.

    Raises:
        ReplicaUnavailable: the server said no, or cannot be reached; `status_of` tells which.
    """
    from urllib3.exceptions import HTTPError

    response = _open(list_, _READ_S, **options)
    try:
        return json.loads(response.data)
    except (HTTPError, OSError, ValueError) as error:
        raise _cut_short("an answer", error) from error
    finally:
        response.release_conn()


def ask_pages(list_: List, **options: Any) -> Iterator[dict[str, Any]]:
    """Yield the pages of a list, each with its `items`, all of one `resourceVersion`.

    Raises:
        ReplicaUnavailable: as `ask`; 410: the list took so long that its next page is forgotten.
    """
    page = ask(list_, limit=_PAGE, **options)
    yield page
    while after := page["metadata"].get("continue"):
        page = ask(list_, limit=_PAGE, _continue=after, **options)
        yield page


def ask_items(list_: List, **options: Any) -> Iterator[KubeObject]:
    """Yield the objects of a list.

    Raises:
        ReplicaUnavailable: as `ask_pages`.
    """
    for page in ask_pages(list_, **options):
        yield from page["items"]


def _open(list_: List, read_s: float, **options: Any) -> Any:
    from kubernetes.client.exceptions import ApiException
    from kubernetes.config import ConfigException
    from urllib3.exceptions import HTTPError

    try:
        response = list_(_preload_content=False, _request_timeout=(_CONNECT_S, read_s), **options)
    except ApiException as error:
        raise _refused(error.status or 0, error.body, error.headers or {}) from error
    except (HTTPError, OSError, ConfigException) as error:  # the last: a token that is just being replaced
        raise ReplicaUnavailable(
            f"expected the Kubernetes API server to answer, found it out of reach: {error}; check the network"
        ) from error
    if response.status >= 300:
        raise _refused(response.status, response.data, response.headers)
    return response


def _refused(status: int, body: Any, headers: Any) -> ReplicaUnavailable:
    try:
        message = str(json.loads(body or "")["message"])
    except (ValueError, KeyError, TypeError):
        message = "no reason given"
    after = str(headers.get("Retry-After", ""))
    return _no(status, message, int(after) * 1000 if after.isdigit() else 0)


def _no(status: int, message: str, retry_after_ms: int = 0) -> ReplicaUnavailable:
    return ReplicaUnavailable(
        f"expected an answer from the Kubernetes API server, found {status}: {message}; `herd doctor --kube` looks why",
        retry_after_ms=retry_after_ms,
        metadata={_STATUS: str(status)},
    )


def _cut_short(what: str, error: Exception) -> ReplicaUnavailable:
    return ReplicaUnavailable(f"expected the end of {what}, found it cut short: {error}; ask again")


def status_of(error: ReplicaUnavailable) -> int:
    """Return the HTTP status with which an API server said no; 0: it was out of reach."""
    return int(error.metadata.get(_STATUS, 0))


def pause_s(num_failures: int, error: ReplicaUnavailable) -> float:
    """Return how long to wait before the next attempt: twice as long each time, as the server asks, at most 15 s.

    Without the right to ask, that may be given later, it is a minute.

    Args:
        num_failures: in a row, at least 1.
        error: the last one.
    """
    if status_of(error) in FORBIDDEN:
        return _FORBIDDEN_PAUSE_S
    doubled_s = _FIRST_PAUSE_S * 2.0 ** min(num_failures - 1, 10)
    return min(max(error.retry_after_ms / 1000, doubled_s), _LONGEST_PAUSE_S)


class Mirror:
    """A thread that keeps what an API server has of one kind.

    Args:
        kind: plural, for messages: nodes, pods.
        list_: lists and watches them.
        keep: returns what to remember of an object; must keep `metadata.name`.
        on_change: called from the thread after every change of what is kept.
        options: for `list_`, a label selector for instance.
    """

    def __init__(
        self,
        kind: str,
        list_: List,
        *,
        keep: Callable[[KubeObject], KubeObject],
        on_change: Callable[[], None],
        **options: Any,
    ) -> None:
        self._kind = kind
        self._list = list_
        self._keep = keep
        self._on_change = on_change
        self._options = options
        self._objects: dict[str, KubeObject] = {}
        self._version: str | None = None
        self._num_failures = 0
        self._told = ""
        self._response: Any = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch-{kind}", daemon=True)

    @property
    def objects(self) -> list[KubeObject]:
        """Return them as they were when they were last heard of."""
        return list(self._objects.values())

    @property
    def problem(self) -> str:
        """Return why that may be old; empty: it is not."""
        return self._told

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End. Blocks for as long as one request may take. Idempotent."""
        self._stopping.set()
        if (response := self._response) is not None:
            with suppress(ValueError, RuntimeError):  # it ends by itself just now
                response.shutdown()
        self._thread.join(_CONNECT_S + _READ_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._version is None:
                    self._relist()
                self._watch()
                self._stopping.wait(_FIRST_PAUSE_S)  # a server may end watches as soon as they begin
            except ReplicaUnavailable as error:
                if self._stopping.is_set():
                    return
                self._num_failures += 1
                if status_of(error) == _GONE:
                    self._version = None
                else:
                    self._tell(error)
                self._stopping.wait(pause_s(self._num_failures, error))

    def _relist(self) -> None:
        found: dict[str, KubeObject] = {}
        for page in ask_pages(self._list, **self._options):
            found |= {each["metadata"]["name"]: self._keep(each) for each in page["items"]}
            version = page["metadata"]["resourceVersion"]
        self._objects, self._version = found, version
        self._is_well()
        self._on_change()

    def _watch(self) -> None:
        """Take changes until the watch ends, by itself or by force.

        Raises:
            ReplicaUnavailable: the stream broke, or the server said no: 410 if it has forgotten our version.
        """
        watching = {"watch": True, "timeout_seconds": _WATCH_S, "resource_version": self._version}
        self._response = _open(self._list, _WATCH_S + _READ_S, allow_watch_bookmarks=True, **watching, **self._options)
        try:
            if self._stopping.is_set():
                return
            for event in _events(self._response):
                self._take(event["type"], event["object"])
        finally:
            self._response.close()
            self._response = None
        self._is_well()

    def _take(self, type_: str, found: KubeObject) -> None:
        if type_ == "ERROR":
            raise _no(int(found.get("code") or 0), str(found.get("message")))
        self._version = found["metadata"]["resourceVersion"]
        if type_ == "BOOKMARK":
            return
        self._is_well()
        name = found["metadata"]["name"]
        known, kept = self._objects.get(name), None if type_ == "DELETED" else self._keep(found)
        if kept == known:
            return  # nodes of a large cluster report all the time what nobody here wants to know
        if kept is None:
            del self._objects[name]
        else:
            self._objects[name] = kept
        self._on_change()

    def _is_well(self) -> None:
        if self._told:
            _LOG.warning("watching %s again", self._kind)
        self._num_failures, self._told = 0, ""

    def _tell(self, error: ReplicaUnavailable) -> None:
        """Say once what is wrong, until something else is, or all is well."""
        status, told = status_of(error), error.message
        if status in FORBIDDEN:
            told = (
                f"expected the right to get, list and watch {self._kind}, found {status}: give it to the pods' service "
                "account (the chart's rbac does); until then Herd goes on without them"
            )
        elif self._num_failures == 1 or (self._told and not status):
            return  # streams break off now and then; and out of reach is the same in other words
        if told != self._told:
            _LOG.warning("cannot watch %s: %s", self._kind, told)
        self._told = told


def _events(response: Any) -> Iterator[dict[str, Any]]:
    """Yield a watch's events.

    Raises:
        ReplicaUnavailable: the stream broke.
    """
    from urllib3.exceptions import HTTPError

    rest = b""
    try:
        # One byte is enough to go on: the next event may be minutes away.
        for piece in response.stream(amt=None, decode_content=False):
            *lines, rest = (rest + piece).split(b"\n")
            yield from (json.loads(line) for line in lines if line.strip())
    except (HTTPError, OSError, ValueError) as error:
        raise _cut_short("a watch", error) from error
