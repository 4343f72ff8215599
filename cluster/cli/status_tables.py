"""What `herd status` prints of a server's answers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.byte_text import format_bytes
from cluster.cli.fitted_table import Column, fitted_table, printable
from cluster.cli.heat_map import by_group, heat_map, is_copy, layer_map, short_number
from cluster.machine_loss import lost_with
from protos.inference.v1 import inference_pb2 as pb

_MOST_EVENTS = 8
_ROUTER_COLUMNS = (
    Column("router", is_name=True),
    Column("running", is_number=True),
    Column("waiting", is_number=True),
    Column("queued tokens", rank=2, is_number=True),
    Column("KV cache", rank=1),
    Column("generated", rank=3, is_number=True),
    Column("hedged", rank=5, is_number=True),
    Column("resent", rank=5, is_number=True),
    Column("ejections", rank=5, is_number=True),
    Column("passes over", rank=4, is_name=True),
    Column("pid", rank=6, is_number=True),
)
_EXPERT_COLUMNS = (
    Column("expert replica", is_name=True),
    Column("state"),
    Column("group", rank=7, is_name=True),
    Column("experts", rank=1),
    Column("tokens/s", rank=2, is_number=True),
    Column("queue", rank=3, is_number=True),
    Column("compute", rank=3, is_number=True),
    Column("weights", rank=4, is_number=True),
    Column("spare", rank=5, is_number=True),
    Column("registered", rank=6, is_number=True),
    Column("host", rank=7),
    Column("address", rank=7),
    Column("pid", rank=5, is_number=True),
)
_REPLICA_COLUMNS = (
    Column("state"),
    Column("deployment", is_name=True),
    Column("what it does", rank=1, is_name=True),
    Column("replica", rank=2, is_name=True),
    Column("age", rank=3, is_number=True),
    Column("host", rank=4),
    Column("pid", rank=5, is_number=True),
)
_STATES = {
    pb.REPLICA_STATE_READY: "ready",
    pb.REPLICA_STATE_STARTING: "starting",
    pb.REPLICA_STATE_DRAINING: "draining",
    pb.REPLICA_STATE_SILENT: "silent",
    pb.REPLICA_STATE_FAILED: "failed",
}
_EVENT_COLUMNS = (
    Column("time", rank=1),
    Column("ago", is_number=True),
    Column("replica", is_name=True),
    Column("what"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What a server said at one moment."""

    info: pb.GetServerInfoResponse
    """What it runs."""
    load: pb.GetLoadResponse
    """How busy its routers are."""
    load_problem: str = ""
    """Why that is not known."""


def render(answers: Answers, width: int, *, by_layer: bool = False) -> RenderableType:
    """Return everything, for a terminal of so many characters; the experts' load by replica or by layer."""
    info, routers = answers.info, answers.load.routers
    now_s = time.time()
    parts: list[RenderableType] = [Text(printable(describe_model(info)))]
    if info.replicas or info.replicas_problem:
        parts.append(replica_states(info, now_s, width))
    if answers.load_problem:
        parts.append(Text(printable(answers.load_problem), "yellow"))
    else:
        parts.append(router_table(routers, width))
    if info.num_experts and not info.experts_in_router:
        parts.append(expert_table(info.expert_replicas, passed_over(routers), now_s, width))
        parts += [
            Text(printable(f"{machine}: its end would take all copies of experts {format_ranges(lost)}"), "yellow")
            for machine, lost in lost_with(info.expert_replicas).items()
        ]
    if info.events:
        parts.append(event_table(info.events, now_s, width))
    if by_layer and info.layer_loads:
        parts.append(layer_map(info.num_experts, info.layer_loads, info.expert_replicas, width))
    elif info.expert_replicas:
        parts.append(heat_map(info.num_experts, info.expert_replicas, width))
    return Group(*(spaced for part in parts for spaced in (part, "")))


def describe_model(info: pb.GetServerInfoResponse) -> str:
    """Return the model and the server in one line."""
    experts = f"{info.num_experts} experts, {info.experts_per_token} per token" if info.num_experts else "no experts"
    experts += ", in each router's process" if info.experts_in_router else ""
    return (
        f"{info.model.name}: {info.num_layers} layers ({info.num_moe_layers} with experts), {experts}, {info.dtype}, "
        f"context {info.model.context_length}, {'with' if info.model.has_tokenizer else 'no'} tokenizer "
        f"(Herd {info.version}, placement {info.placement_version})"
    )


def replica_states(info: pb.GetServerInfoResponse, now_s: float, width: int) -> RenderableType:
    """Return how many replicas are in which state, and a row for each that needs a look: all but those that serve."""
    counts = Counter(each.state for each in info.replicas)
    line = "replicas: " + ", ".join(f"{counts[state]} {name}" for state, name in _STATES.items())
    parts: list[RenderableType] = [Text(line)]
    if info.replicas_problem:
        parts.append(Text(f"as of a moment ago: {printable(info.replicas_problem)}", "yellow"))
    rows = [
        (
            _STATES.get(each.state, "?"),
            each.deployment,
            replica_detail(each),
            each.replica_id,
            format_age(now_s - each.since_ms / 1000) if each.HasField("since_ms") else "-",
            each.host or "-",
            str(each.pid or "-"),
        )
        for each in info.replicas
        if each.state != pb.REPLICA_STATE_READY
    ]
    if rows:
        parts.append(fitted_table(_REPLICA_COLUMNS, rows, width))
    failed = [each for each in info.replicas if each.state == pb.REPLICA_STATE_FAILED]
    parts += [Text(printable(f"{each.deployment} failed: {each.reason}"), "red") for each in failed]
    return Group(*parts)


def replica_detail(replica: pb.Replica) -> str:
    """Return what a replica is about, beyond its state."""
    if replica.state == pb.REPLICA_STATE_FAILED:
        return "see below"
    if replica.state == pb.REPLICA_STATE_SILENT:
        return "no heartbeat comes"
    if replica.state != pb.REPLICA_STATE_STARTING:
        return ""
    if replica.waits_for:
        return f"waits for {replica.waits_for}"
    if replica.total_bytes:
        return f"{format_bytes(replica.done_bytes)} of {format_bytes(replica.total_bytes)}"
    return "begins" if replica.pid else "waits for a process"


def router_table(routers: Sequence[pb.RouterLoad], width: int) -> RenderableType:
    """Return a row per router."""
    if not routers:
        return Text("no router runs; the first request starts one")
    rows = []
    for router in routers:
        sent = router.dispatches if router.HasField("dispatches") else None
        rows.append(
            (
                router.replica_id,
                f"{router.running} of {router.slots}",
                str(router.waiting),
                str(router.queued_prompt_tokens),
                f"{format_bytes(router.kv_used_bytes)} of {format_bytes(router.kv_total_bytes)}",
                str(router.generated_tokens),
                str(sent.hedges) if sent else "-",
                str(sent.resends) if sent else "-",
                str(sent.ejections) if sent else "-",
                (", ".join(sent.ejected) or "nobody") if sent else "-",
                str(router.pid or "-"),
            )
        )
    return fitted_table(_ROUTER_COLUMNS, rows, width)


def passed_over(routers: Sequence[pb.RouterLoad]) -> dict[str, int]:
    """Return how many routers pass over each expert replica that any passes over."""
    found: dict[str, int] = {}
    for router in routers:
        for replica_id in router.dispatches.ejected:
            found[replica_id] = found.get(replica_id, 0) + 1
    return found


def expert_table(replicas: Sequence[pb.ExpertReplica], passed: Mapping[str, int], now_s: float, width: int) -> Table:
    """Return a row per expert replica.

    Args:
        replicas: rows.
        passed: see `passed_over`.
        now_s: seconds since 1970.
        width: characters of the terminal.
    """
    rows = []
    for replica in by_group(replicas):
        routers = passed.get(replica.replica_id)
        copies = [expert for expert in replica.expert_ids if is_copy(replica, expert)]
        home = [expert for expert in replica.expert_ids if not is_copy(replica, expert)]
        since = now_s - replica.registered_at_ms / 1000 if replica.HasField("registered_at_ms") else None
        rows.append(
            (
                replica.replica_id,
                f"passed over by {routers}" if routers else "serving",
                replica.group,
                format_ranges(home) + (f" + {format_ranges(copies)}" if copies else ""),
                short_number(sum(replica.tokens_per_s.values())),
                f"{replica.queue_us / 1000:.2f} ms",
                f"{replica.compute_us / 1000:.2f} ms",
                format_bytes(replica.weight_bytes),
                format_bytes(replica.spare_bytes),
                "-" if since is None else format_age(since),
                replica.host,
                replica.address,
                str(replica.pid),
            )
        )
    return fitted_table(_EXPERT_COLUMNS, rows, width)


def event_table(events: Sequence[pb.ClusterEvent], now_s: float, width: int) -> Table:
    """Return the newest events, newest first."""
    rows = []
    for event in reversed(events[-_MOST_EVENTS:]):
        at_s = event.at_ms / 1000
        clock = time.strftime("%H:%M:%S", time.localtime(at_s))
        rows.append((clock, format_age(now_s - at_s), event.subject, event.text))
    return fitted_table(_EVENT_COLUMNS, rows, width)


def format_age(seconds: float) -> str:
    """Write a time that has passed: 5 s, 4 min, 3 h, 2 d."""
    for unit, length, least in (("d", 86_400, 172_800), ("h", 3_600, 7_200), ("min", 60, 120)):
        if seconds >= least:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"


def format_ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers with runs folded: 0, 1, 2, 5 is "0-2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
