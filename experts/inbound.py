"""Checks a dispatch as it came off the wire: whatever passes can be computed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from experts.replica import HeldExperts
from experts.work import Outcome, Work
from protos.checksum import dispatch_checksum
from protos.codec import decode_tensor
from protos.errors import BadDispatch, BadTensor, StalePlacement
from protos.expert.v1 import expert_pb2
from protos.segment import Segment
from protos.tensor.v1 import tensor_pb2


def read_dispatch(
    dispatch: expert_pb2.Dispatch,
    held: HeldExperts,
    *,
    arrived_s: float,
    deliver: Callable[[Outcome], None],
    segment: Segment | None = None,
    stands_back: bool = False,
) -> Work:
    """Return a dispatch as work, its tokens a view of the message's bytes or of shared memory.

    Args:
        dispatch: as received.
        held: the experts that will run it.
        arrived_s: when it was received, on the batcher's clock.
        deliver: takes the outcome if the work has to wait.
        segment: memory shared with the sender.
        stands_back: whether its sender lets others pass.

    Raises:
        BadDispatch: it was damaged on its way, the layer has no experts, an expert is not in the model, or the counts
            do not add up.
        BadTensor: the tokens' dtype, shape or byte count is not what the model has.
        StalePlacement: an expert is not held here.
    """
    if dispatch.HasField("checksum") and dispatch.checksum != (found := dispatch_checksum(dispatch)):
        raise BadDispatch(
            f"checksum: expected {dispatch.checksum}, as the sender computed it, found {found}: the dispatch was "
            "damaged on its way, send it again"
        )
    config = held.config
    if dispatch.layer not in config.moe_layers:
        raise BadDispatch(
            f"layer: expected one of the model's {len(config.moe_layers)} MoE layers, found {dispatch.layer} of "
            f"{config.num_layers}: send dense layers nowhere"
        )
    expert_ids, token_counts = tuple(dispatch.expert_ids), tuple(dispatch.token_counts)
    _check_experts(expert_ids, token_counts, held)
    hidden_ND = _read_hidden(dispatch.hidden, held, segment)
    num_tokens = hidden_ND.shape[0]
    if sum(token_counts) != num_tokens:
        raise BadDispatch(
            f"token_counts: expected a sum of {num_tokens}, the tokens sent, found {sum(token_counts)}: count the "
            "tokens of each expert"
        )
    return Work(
        layer=dispatch.layer,
        expert_ids=expert_ids,
        token_counts=token_counts,
        num_tokens=num_tokens,
        hidden_ND=hidden_ND,
        arrived_s=arrived_s,
        deadline_s=arrived_s + dispatch.deadline_ms / 1000 if dispatch.deadline_ms else None,
        stands_back=stands_back,
        deliver=deliver,
    )


def _read_hidden(wire: tensor_pb2.Tensor, held: HeldExperts, segment: Segment | None) -> Tensor:
    shape = (None, held.config.hidden_size)
    if not wire.HasField("shared"):
        return decode_tensor(wire, dtype=held.dtype, shape=shape, name="hidden")
    if segment is None:
        raise BadTensor("hidden: expected data, found a range of shared memory: agree on a segment in hello first")
    return segment.read(wire, dtype=held.dtype, shape=shape, name="hidden")


def _check_experts(expert_ids: tuple[int, ...], token_counts: tuple[int, ...], held: HeldExperts) -> None:
    if not expert_ids or len(expert_ids) != len(token_counts):
        raise BadDispatch(
            f"expert_ids: expected at least one expert and as many token_counts, found {len(expert_ids)} and "
            f"{len(token_counts)}: name each expert once, with its count"
        )
    if any(left >= right for left, right in pairwise(expert_ids)):
        raise BadDispatch(
            f"expert_ids: expected strictly ascending ids, found {_shown(expert_ids)}: sort tokens by expert"
        )
    if expert_ids[-1] >= held.config.num_experts:
        raise BadDispatch(
            f"expert_ids: expected ids below {held.config.num_experts}, found {expert_ids[-1]}: check the sender's gate"
        )
    if min(token_counts) < 1:
        raise BadDispatch(
            f"token_counts: expected positive counts, found {_shown(token_counts)}: leave out experts without tokens"
        )
    if missing := [expert for expert in expert_ids if expert not in held.expert_ids]:
        raise StalePlacement(
            f"expert_ids: expected experts this replica holds, {_shown(held.expert_ids)}, found {_shown(missing)}: "
            "refresh the placement and send them to a holder"
        )


def _shown(numbers: tuple[int, ...] | list[int]) -> str:
    """Return the first few numbers, for a message."""
    return ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
