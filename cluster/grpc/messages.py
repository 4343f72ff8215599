"""The front door's plain data as messages of herd.inference.v1, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

from cluster.layer_load import LayerLoad
from cluster.prompt import check_role
from cluster.replica_roster import ReplicaInfo, ReplicaState
from cluster.router_client import ExpertReplicaInfo, PlacementInfo, RouterLoad
from cluster.served_model import ServedModel
from cluster.service_events import Delta, Finished, LikelyToken, Progress, ScoredToken, ServiceEvent, Started
from cluster.version import herd_version
from models.chat_message import ChatMessage
from protos.inference.v1 import inference_pb2 as pb
from router.transport.health import TransportHealth

_FINISH_REASONS = {
    None: pb.FINISH_REASON_UNSPECIFIED,
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
}
_REPLICA_STATES: dict[ReplicaState, pb.ReplicaState] = {
    "failed": pb.REPLICA_STATE_FAILED,
    "silent": pb.REPLICA_STATE_SILENT,
    "starting": pb.REPLICA_STATE_STARTING,
    "draining": pb.REPLICA_STATE_DRAINING,
    "ready": pb.REPLICA_STATE_READY,
}


def optional(message: Message, name: str) -> Any:
    """Return an optional field; None when it is absent."""
    return getattr(message, name) if message.HasField(name) else None


def chat_messages(chat: pb.Chat) -> list[ChatMessage]:
    """Return a conversation's messages.

    Raises:
        InvalidRequest: a role is unknown.
    """
    return [
        ChatMessage(role=check_role(f"chat.messages[{index}].role", each.role), content=each.content)
        for index, each in enumerate(chat.messages)
    ]


def generate_response(event: ServiceEvent, model: ServedModel) -> pb.GenerateResponse:
    """Return the message for an event."""
    match event:
        case Started():
            started = pb.Started(
                request_id=event.request_id,
                model=model.name,
                prompt_tokens=event.num_prompt_tokens,
                prompt_logprobs=[_token_logprob(each) for prompt in event.prompt_logprobs for each in prompt],
            )
            return pb.GenerateResponse(started=started)
        case Progress():
            start_s = event.expected_start_s
            progress = pb.Progress(
                queue_position=event.queue_position,
                expected_start_ms=None if start_s is None else _thousandths(start_s),
                prompt_tokens_done=event.num_prompt_done,
                prompt_tokens=event.num_prompt_tokens,
            )
            return pb.GenerateResponse(progress=progress)
        case Delta():
            delta = pb.Delta(
                choice=event.choice,
                text=event.text,
                token_ids=event.token_ids,
                logprobs=[_token_logprob(each) for each in event.logprobs],
                finish_reason=_FINISH_REASONS[event.finish_reason],
            )
            return pb.GenerateResponse(delta=delta)
        case Finished():
            usage = pb.Usage(
                prompt_tokens=event.usage.prompt_tokens,
                completion_tokens=event.usage.completion_tokens,
                cached_tokens=event.usage.cached_tokens,
            )
            return pb.GenerateResponse(finished=pb.Finished(usage=usage))


def model_message(model: ServedModel) -> pb.Model:
    """Return what clients are told of the model."""
    return pb.Model(name=model.name, context_length=model.context_length, has_tokenizer=model.has_tokenizer)


def server_info_response(model: ServedModel, placement: PlacementInfo) -> pb.GetServerInfoResponse:
    """Return what is running."""
    config = model.config
    return pb.GetServerInfoResponse(
        version=herd_version(),
        model=model_message(model),
        num_layers=config.num_layers,
        num_moe_layers=len(config.moe_layers),
        num_experts=config.num_experts,
        experts_per_token=config.experts_per_token,
        dtype=model.dtype,
        placement_version=placement.version,
        expert_replicas=[_expert_replica(each) for each in placement.expert_replicas],
        kv_cache=_kv_cache(model),
        events=[
            pb.ClusterEvent(at_ms=_thousandths(each.at_s), subject=each.subject, text=each.text)
            for each in placement.events
        ],
        layer_loads=_layer_loads(placement.layer_load, config.num_experts),
        replicas=[_replica(each) for each in placement.roster],
        replicas_problem=placement.roster_problem,
        experts_in_router=model.experts_in_router,
    )


def _layer_loads(load: LayerLoad | None, num_experts: int) -> list[pb.LayerLoad]:
    if load is None:
        return []
    return [pb.LayerLoad(layer=layer, tokens_per_s=row) for layer, row in load.rows(num_experts).items()]


def _replica(replica: ReplicaInfo) -> pb.Replica:
    return pb.Replica(
        replica_id=replica.replica_id,
        deployment=replica.deployment,
        state=_REPLICA_STATES[replica.state],
        done_bytes=replica.done_bytes,
        total_bytes=replica.total_bytes,
        waits_for=replica.waits_for,
        reason=replica.reason,
        since_ms=None if replica.since_s is None else _thousandths(replica.since_s),
        host=replica.host,
        pid=replica.pid,
    )


def _expert_replica(replica: ExpertReplicaInfo) -> pb.ExpertReplica:
    registered_at_s = replica.registered_at_s
    return pb.ExpertReplica(
        replica_id=replica.replica_id,
        group=replica.group,
        address=replica.address,
        expert_ids=replica.expert_ids,
        weight_bytes=replica.weight_bytes,
        pid=replica.pid,
        host=replica.host,
        home_ids=replica.home_ids,
        tokens_per_s=replica.tokens_per_s,
        queue_us=_thousandths(replica.queue_s * 1000),
        compute_us=_thousandths(replica.compute_s * 1000),
        spare_bytes=replica.spare_bytes,
        registered_at_ms=None if registered_at_s is None else _thousandths(registered_at_s),
    )


def _thousandths(value: float) -> int:
    return round(value * 1000)


def _kv_cache(model: ServedModel) -> pb.KvCache | None:
    """Return what the routers' cache takes; None where that is not known."""
    if model.cache is None:
        return None
    layout = model.cache.layout
    return pb.KvCache(
        dtype=layout.kv_dtype,
        page_tokens=layout.page_tokens,
        global_bytes_per_token=layout.global_token_bytes,
        most_local_bytes_per_sequence=layout.local_token_bytes * (layout.chunk or 0),
        total_bytes=model.cache.num_bytes,
    )


def load_response(loads: Sequence[RouterLoad]) -> pb.GetLoadResponse:
    """Return how busy the routers are."""
    return pb.GetLoadResponse(
        routers=[
            pb.RouterLoad(
                replica_id=each.replica_id,
                running=each.load.running,
                waiting=each.load.waiting,
                queued_prompt_tokens=each.load.queued_prompt_tokens,
                kv_used_bytes=each.load.kv_used_bytes,
                kv_total_bytes=each.load.kv_total_bytes,
                slots=each.load.slots,
                generated_tokens=each.load.generated_tokens,
                kv_cached_bytes=each.load.kv_cached_bytes,
                kv_swapped_bytes=each.load.kv_tiers.host_bytes + each.load.kv_tiers.disk_bytes,
                prompt_tokens=each.load.prompt_tokens,
                cached_tokens=each.load.cached_tokens,
                preemptions=each.load.preemptions,
                pid=each.pid,
                dispatches=_dispatches(each.dispatches),
            )
            for each in loads
        ]
    )


def _dispatches(health: TransportHealth | None) -> pb.Dispatches | None:
    if health is None:
        return None
    return pb.Dispatches(
        shares=health.counts.shares,
        hedges=health.counts.hedges,
        resends=health.counts.resends,
        probes=health.counts.probes,
        ejections=health.ejections,
        ejected=sorted(health.ejected),
    )


def _token_logprob(token: ScoredToken) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        token_id=token.token_id,
        text=_text(token),
        logprob=token.logprob,
        top=[pb.TopLogprob(token_id=each.token_id, text=_text(each), logprob=each.logprob) for each in token.top],
    )


def _text(token: ScoredToken | LikelyToken) -> str:
    return token.text.decode("utf-8", errors="replace")
