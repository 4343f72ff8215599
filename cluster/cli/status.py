"""`herd status`: tables of what runs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from cluster.byte_text import format_bytes
from cluster.cli.server_address import CALL_TIMEOUT_S, channel_to
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1.inference_pb2_grpc import InferenceServiceStub


def show_status(address: str) -> None:
    """Ask a running Herd and print what it says.

    Raises:
        ServingError: it does not answer.
    """
    with channel_to(address) as channel:
        stub = InferenceServiceStub(channel)
        info = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=CALL_TIMEOUT_S)
        load = stub.GetLoad(pb.GetLoadRequest(), timeout=CALL_TIMEOUT_S)
    console = Console(highlight=False)
    console.print(describe_model(info), soft_wrap=True)
    console.print(router_table(load.routers))
    if info.num_experts:
        console.print(expert_table(info.expert_replicas))


def describe_model(info: pb.GetServerInfoResponse) -> str:
    """Return the model and the server in one line."""
    experts = f"{info.num_experts} experts, {info.experts_per_token} per token" if info.num_experts else "no experts"
    return (
        f"{info.model.name}: {info.num_layers} layers ({info.num_moe_layers} with experts), {experts}, {info.dtype}, "
        f"context {info.model.context_length}, {'with' if info.model.has_tokenizer else 'no'} tokenizer "
        f"(Herd {info.version}, placement {info.placement_version})"
    )


def router_table(routers: Sequence[pb.RouterLoad]) -> Table:
    """Return a row per router."""
    table = Table("router", "running", "waiting", "queued tokens", "KV cache", "generated")
    for router in routers:
        table.add_row(
            router.replica_id,
            f"{router.running} of {router.slots}",
            str(router.waiting),
            str(router.queued_prompt_tokens),
            f"{format_bytes(router.kv_used_bytes)} of {format_bytes(router.kv_total_bytes)}",
            str(router.generated_tokens),
        )
    return table


def expert_table(replicas: Sequence[pb.ExpertReplica]) -> Table:
    """Return a row per expert replica."""
    table = Table("expert replica", "group", "experts", "address", "weights", "pid")
    for replica in replicas:
        experts = format_ranges(replica.expert_ids)
        weights = format_bytes(replica.weight_bytes)
        table.add_row(replica.replica_id, replica.group, experts, replica.address, weights, str(replica.pid))
    return table


def format_ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers with runs folded: 0, 1, 2, 5 is "0-2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
