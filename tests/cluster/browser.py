"""A headless Chromium driven through its own protocol over two pipes: no driver, no port, no dependency."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT_S = 60.0
"""Starting it takes seconds, on a busy machine more."""
_FLAGS = (
    "--headless",
    "--no-sandbox",  # containers rarely allow one, and only our page is opened
    "--disable-gpu",
    "--hide-scrollbars",  # they would be missing from pictures, and their room with them
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--no-first-run",
    "--remote-debugging-pipe",
)


def find_chromium() -> str | None:
    """Return where a Chromium is, None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A process; `close` ends it.

    Args:
        executable: of Chromium.
        profile: an empty folder for what it writes.
    """

    def __init__(self, executable: str, profile: Path) -> None:
        # Chromium reads descriptor 3 and writes 4. subprocess cannot place descriptors without forking Python code,
        # which is unsafe beside threads.
        read_end, self._to = os.pipe()
        self._from, write_end = os.pipe()
        null = os.open(os.devnull, os.O_RDWR)
        actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1, 2)]
        # Above both targets first: a source must not be overwritten before it is copied.
        actions += [(os.POSIX_SPAWN_DUP2, read_end, 103), (os.POSIX_SPAWN_DUP2, write_end, 104)]
        actions += [(os.POSIX_SPAWN_DUP2, 103, 3), (os.POSIX_SPAWN_DUP2, 104, 4)]
        command = [executable, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._pid = os.posix_spawn(executable, command, os.environ, file_actions=actions, setpgroup=0)
        for descriptor in (read_end, write_end, null):
            os.close(descriptor)
        self._buffer = b""
        self._last_id = 0
        self.events: list[dict[str, Any]] = []
        """What it told unasked, oldest first."""

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._last_id:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, url: str, *, width: int = 1200, height: int = 900, dark: bool = False) -> Page:
        """Open a page of that size."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.call("Page.navigate", url=url)
        return page

    def close(self) -> None:
        """End the process and its children."""
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._to)
        os.close(self._from)

    def _receive(self) -> dict[str, Any]:
        give_up_at = time.monotonic() + WAIT_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0, give_up_at - time.monotonic()))
            assert ready, f"Chromium said nothing for {WAIT_S:g} s"
            data = os.read(self._from, 1 << 20)
            assert data, "Chromium ended"
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(text)


class Page:
    """An open page of a browser."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self._browser, self._session, self._target = browser, session, target

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol for this page."""
        return self._browser.call(method, self._session, **params)

    def run(self, expression: str) -> Any:
        """Return what JavaScript evaluates to; a promise's value."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until JavaScript evaluates to something true."""
        limit_ms = int(WAIT_S * 500)
        found = self.run(
            f"new Promise((done) => {{ const end = Date.now() + {limit_ms}; const look = () => {{"
            f"const is = Boolean({condition}); if (is || Date.now() > end) done(is); else setTimeout(look, 20); }};"
            "look(); })"
        )
        assert found, f"waited for {condition}; the page says:\n{self.run('document.body.innerText')}"

    def texts(self, selector: str) -> list[str]:
        """Return the texts of all elements that match."""
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((each) => each.textContent)")

    def requested(self) -> list[str]:
        """Return the addresses the page asked for, in order."""
        return [each["params"]["request"]["url"] for each in self._events("Network.requestWillBeSent")]

    def complaints(self) -> list[Any]:
        """Return everything in the console that is no plain message, and uncaught errors."""
        logged = [each["params"]["entry"] for each in self._events("Log.entryAdded")]
        raised = [each["params"] for each in self._events("Runtime.exceptionThrown", "Runtime.consoleAPICalled")]
        return logged + raised

    def requests_at_once(self, ending: str) -> int:
        """Return how many requests to an address that ends so were under way at once, at most."""
        under_way: set[str] = set()
        most = 0
        for event in self._events("Network.requestWillBeSent", "Network.loadingFinished", "Network.loadingFailed"):
            request_id = event["params"]["requestId"]
            if event["method"] != "Network.requestWillBeSent":
                under_way.discard(request_id)
            elif event["params"]["request"]["url"].endswith(ending):
                under_way.add(request_id)
                most = max(most, len(under_way))
        return most

    def screenshot(self, path: Path) -> None:
        """Write a picture of the whole page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """Close it."""
        self._browser.call("Target.closeTarget", targetId=self._target)

    def _events(self, *methods: str) -> list[dict[str, Any]]:
        self.run("0")  # whatever came before this answer has been read
        return [
            each
            for each in self._browser.events
            if each.get("sessionId") == self._session and each["method"] in methods
        ]
