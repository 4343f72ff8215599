"""Faults of single messages between a router and an expert replica: an engine, two replicas, one behind a proxy.

Between the parts of a running Herd nothing can be put; so here the router's engine runs in this process, with the
transport that it always has, and the replicas are processes as always. Both hold every expert.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace

import torch

from benchmarks.expert_processes import open_experts
from models.checkpoint import open_checkpoint
from models.llama4.decoder import load_decoder
from models.presets import resolve_model
from router.engine import Engine
from router.limits import EngineLimits
from router.placement import Placement
from router.transport.grpc import GrpcTransport
from tests.faults.tampering_proxy import Harm, TamperingProxy, Way

from .engine_load import EngineLoad
from .measure import Recorded, measure
from .outcome import FaultEvent, Outcome
from .requests import make_requests
from .run_options import RunOptions, Say
from .wire_scenarios import EVERY, WireScenario

_HOLD_S = 10.0
_WAIT_S = 60.0


class WireRun:
    """One scenario, once.

    Args:
        scenario: which.
        options: how; `settings` have no meaning here.
        say: told what happens, for people.
    """

    def __init__(self, scenario: WireScenario, options: RunOptions, say: Say) -> None:
        self._scenario = scenario
        self._options = options
        self._say = say
        self._is_harmful = False
        self._faults: list[FaultEvent] = []

    def run(self) -> Outcome:
        """Run it; whatever happens, no process stays."""
        options = self._options
        with ExitStack() as stack:
            self._say(f"{self._scenario.name}: starting two expert processes and an engine")
            checkpoint = open_checkpoint(resolve_model("demo"))
            everything = range(checkpoint.config.num_experts)
            opened = stack.enter_context(open_experts(checkpoint, [everything] * 2, dtype="float32", threads=1))
            near, far = opened.transport.placement.holders
            proxy = stack.enter_context(TamperingProxy(near.address, self._plan))
            transport = GrpcTransport(router_id="chaos", fingerprint=checkpoint.fingerprint)
            stack.callback(transport.close)
            # A replica of another host: the proxy sees nothing of what goes through shared memory or Unix sockets.
            through = replace(near, replica_id="through-proxy", address=proxy.address, unix_address=None)
            transport.update(Placement(version=1, holders=(through, far)))
            limits = EngineLimits(context_length=1024, kv_bytes=100_000_000, slots=options.streams)
            engine = Engine(load_decoder(checkpoint, dtype=torch.float32), transport, limits)
            engine.start()
            stack.callback(engine.stop)
            ids = [through.replica_id, far.replica_id]
            if not _wait_ready(transport, ids):
                raise TimeoutError(f"expected streams to {ids} within {_WAIT_S:g} s")
            load = EngineLoad(engine, make_requests(options.requests, options.max_tokens), options.streams)
            self._say(f"asking each of {options.requests} requests once, without faults")
            reference = load.run_each_once()
            began_s = time.monotonic()
            load.start()
            self._disturb(transport, ids, load, proxy, began_s)
            ended_s = time.monotonic()
            load.stop()
        return measure(
            self._scenario.name,
            {"herd": "an engine and two expert processes, one behind a proxy", **options.describe()},
            load=Recorded(records=load.records, reference=reference, began_s=began_s, ended_s=ended_s),
            faults=self._faults,
        )

    def _plan(self, way: Way, number: int) -> Harm | None:
        """Say what is done to a message: dispatches and answers in turn."""
        if not self._is_harmful or number % EVERY != (0 if way is Way.DISPATCH else EVERY // 2):
            return None
        return self._scenario.harm(number // EVERY)

    def _disturb(
        self, transport: GrpcTransport, ids: list[str], load: EngineLoad, proxy: TamperingProxy, began_s: float
    ) -> None:
        for _ in range(self._options.repeat):
            time.sleep(self._options.warm_up_s)
            now_s = time.monotonic()
            event = FaultEvent(label=self._scenario.name, injected_s=now_s - began_s, lifted_s=0.0)
            event.streams_in_flight = sum(record.ran_at(now_s) for record in list(load.records))
            self._faults.append(event)
            self._is_harmful = True
            time.sleep(self._options.hold_s or _HOLD_S)
            self._is_harmful = False
            event.lifted_s = time.monotonic() - began_s
            is_back = _wait_ready(transport, ids)
            event.recovered_s = time.monotonic() - began_s if is_back else None
            event.problem = "" if is_back else f"a stream to one of {ids} is not open"
            self._say(f"{proxy.num_harmed} messages harmed")
            time.sleep(self._options.calm_s)


def _wait_ready(transport: GrpcTransport, replica_ids: list[str]) -> bool:
    """Wait until the streams to all of these replicas are open; tell whether that came in time."""
    give_up_at = time.monotonic() + _WAIT_S
    while time.monotonic() < give_up_at:
        streams = [transport.stream(replica_id) for replica_id in replica_ids]
        if all(stream is not None and stream.is_ready for stream in streams):
            return True
        time.sleep(0.02)
    return False
