"""Where the time goes from a replica's process being there to its first dispatch."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class StartupPhases:
    """A start, in seconds; None: not there yet."""

    started_at_s: float
    """When the process began, or a warm one was given its work, in seconds since 1970: whoever decided to start it
    knows how long that took before."""
    was_warm: bool = False
    """The process had been started ahead and had imported everything."""
    import_s: float | None = None
    """From there until the replica's constructor ran, all imported; in a process that waited for work without being
    warm, waiting too."""
    open_s: float | None = None
    """Until the checkpoint was open: configuration, headers, fingerprint."""
    copied_bytes: int = 0
    """Bytes of weights that came from live replicas instead of files."""
    read_s: float | None = None
    """Of loading, the share that its threads spent reading."""
    pack_s: float | None = None
    """Of loading, the share that they spent converting, rounding and packing."""
    serves_s: float | None = None
    """From the beginning until the first expert took dispatches, maybe while others were still loading."""
    ready_s: float | None = None
    """From the beginning until all experts did."""
    first_dispatch_s: float | None = None
    """From the beginning until the first dispatch was computed."""

    def described(self) -> str:
        """Return the phases in one line, for logs."""
        seconds = {name: value for name, value in asdict(self).items() if name.endswith("_s") and value is not None}
        told = [
            f"{name[:-2].replace('_', ' ')} {value:.2f} s" for name, value in seconds.items() if name != "started_at_s"
        ]
        if self.was_warm:
            told.insert(0, "warm process")
        if self.copied_bytes:
            told.append(f"{self.copied_bytes / 1e6:.1f} MB copied from live replicas")
        return ", ".join(told)


class StartupClock:
    """Measures a start as it goes. `imported`, `opened` and `loaded` end a phase that began where the last one ended.

    Dispatches are computed in another thread than experts are loaded: any thread may call.

    Args:
        given_at_s: when a warm process was given its work, by time.monotonic(); None: it is not, the start began with
            the process.
    """

    def __init__(self, given_at_s: float | None = None) -> None:
        now = time.monotonic()
        age_s = _process_age_s() if given_at_s is None else now - given_at_s
        self._began = self._last = now - age_s
        self._changing = threading.Lock()
        self.phases = StartupPhases(started_at_s=time.time() - age_s, was_warm=given_at_s is not None)

    def imported(self) -> None:
        """All is imported."""
        self._set(import_s=self._lap())

    def opened(self) -> None:
        """The checkpoint is open."""
        self._set(open_s=self._lap())

    def loaded(self, reading_share: float, copied_bytes: int = 0) -> None:
        """The weights are there.

        Args:
            reading_share: of the loading threads' time, what went into reading; 0 to 1.
            copied_bytes: of weights that came from live replicas.
        """
        load_s = self._lap()
        self._set(read_s=load_s * reading_share, pack_s=load_s * (1 - reading_share), copied_bytes=copied_bytes)

    def serving(self) -> None:
        """Dispatches are taken for the first expert."""
        self._set(serves_s=self._since_began())

    def ready(self) -> StartupPhases:
        """Dispatches are taken for all experts; return what is known then."""
        return self._set(ready_s=self._since_began())

    def dispatched(self) -> StartupPhases:
        """The first dispatch is computed; return what is known then. Of this and `ready`, the later one knows all."""
        return self._set(first_dispatch_s=self._since_began())

    def _set(self, **phases: Any) -> StartupPhases:
        with self._changing:
            self.phases = replace(self.phases, **phases)
            return self.phases

    def _since_began(self) -> float:
        return time.monotonic() - self._began

    def _lap(self) -> float:
        before, self._last = self._last, time.monotonic()
        return self._last - before


def _process_age_s() -> float:
    """Return how long this process has been there; where there is no /proc, its processor time."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19])  # starttime, the 22nd field: since the machine was booted
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.process_time()
