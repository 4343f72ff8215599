"""Whether everything runs that ran before: processes, registrations, connections."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import grpc

from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1 import inference_pb2_grpc

from .connections import num_unix_clients
from .processes import Part, find_processes

_ASK_S = 3.0
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Redundancy:
    """What is there at one moment."""

    processes: tuple[tuple[str, int], ...]
    """(name, how many) of the application's processes."""
    experts: tuple[tuple[str, int, int], ...]
    """(group, how many replicas the directory has, how many connections routers have to them)."""
    routers: int
    """Router replicas that answer."""
    directory: int = 0
    """Pid of the directory; not part of what has to come back."""

    def has_all_of(self, other: Redundancy) -> bool:
        """Tell whether nothing is missing that was there at another moment."""
        mine, theirs = dict(self.processes), dict(other.processes)
        groups = {group: counts for group, *counts in self.experts}
        return (
            all(mine.get(name, 0) >= count for name, count in theirs.items())
            and all(
                group in groups and groups[group][0] >= count and groups[group][1] >= links
                for group, count, links in other.experts
            )
            and self.routers >= other.routers
        )


class RedundancyWatch:
    """Looks at an application.

    Args:
        pid: of `herd serve`.
        grpc_port: where it answers.
    """

    def __init__(self, pid: int, grpc_port: int) -> None:
        self._pid = pid
        self._address = f"127.0.0.1:{grpc_port}"
        self.last_problem = ""
        """Why the last look found nothing, or what it found missing."""

    def look(self) -> Redundancy | None:
        """Return what is there now; None if nobody answers."""
        with grpc.insecure_channel(self._address, [("grpc.enable_http_proxy", 0)]) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            try:
                info = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=_ASK_S)
                load = stub.GetLoad(pb.GetLoadRequest(), timeout=_ASK_S)
            except grpc.RpcError as error:
                self.last_problem = f"{error.code().name}: {error.details()}"
                return None
        processes = find_processes(self._pid)
        alive = {process.pid for process in processes}
        registered = [
            replica
            for replica in info.expert_replicas
            if replica.pid in alive and set(replica.home_ids) <= set(replica.expert_ids)  # else it still loads
        ]
        counts = Counter(replica.group for replica in registered)
        links: Counter[str] = Counter()
        for replica in registered:
            links[replica.group] += num_unix_clients(replica.pid)
        return Redundancy(
            processes=tuple(sorted(Counter(process.name for process in processes).items())),
            experts=tuple((group, count, links[group]) for group, count in sorted(counts.items())),
            routers=len(load.routers),
            directory=next((each.pid for each in processes if each.part is Part.DIRECTORY), 0),
        )

    def wait(self, before: Redundancy, gone: Collection[int], timeout_s: float) -> float | None:
        """Return the monotonic second at which everything was back, or None if it was not in time.

        Args:
            before: what has to be back.
            gone: pids that must not be counted as there, should they be about to die.
            timeout_s: seconds to wait.
        """
        give_up_at = time.monotonic() + timeout_s
        while time.monotonic() < give_up_at:
            asked_at = time.monotonic()
            now = self.look()
            still = {process.pid for process in find_processes(self._pid)} & set(gone)
            if now is not None and not still:
                if now.has_all_of(before):
                    return asked_at
                self.last_problem = f"found {now}, expected {before}"
            time.sleep(_POLL_S)
        return None

    def steady(self, timeout_s: float) -> Redundancy:
        """Return what is there once two looks in a row find the same.

        Raises:
            TimeoutError: they do not in time.
        """
        give_up_at = time.monotonic() + timeout_s
        last: Redundancy | None = None
        while time.monotonic() < give_up_at:
            now = self.look()
            if now is not None and now == last and now.directory:
                return now
            last = now
            time.sleep(_POLL_S)
        raise TimeoutError(f"expected an application that settles within {timeout_s:g} s, found {self.last_problem}")
