"""What routers and expert replicas compute on: GPUs or processors, from the settings, the model and the machine. Pure.

A process takes a whole GPU. Ray gives it one and shows it no other, so that it is `cuda:0` there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cluster.config import ClusterConfig
from cluster.gpus import Gpus
from models.config import ModelConfig
from models.gpu.capability import LEAST_CAPABILITY
from protos.errors import BadConfig

Device = Literal["cpu", "cuda"]
_DTYPES = ("auto", "bfloat16", "float16")
"""Settings of `router.dtype` that go with GPUs."""
_ONE_PROCESS = "experts.in_router=true serves a whole model in one process, on one GPU"


@dataclass(frozen=True, kw_only=True, slots=True)
class Devices:
    """What was chosen."""

    router: Device = "cpu"
    """Of every router."""
    experts: Device = "cpu"
    """Of every expert replica; with experts in the routers' processes, and of a dense model, the routers'."""
    note: str = ""
    """Why GPUs that are there are not used, for people; empty: nothing to say."""

    @property
    def any_gpu(self) -> bool:
        """Tell whether anything computes on GPUs."""
        return "cuda" in (self.router, self.experts)


def has_expert_replicas(settings: ClusterConfig, config: ModelConfig) -> bool:
    """Tell whether experts are in processes of their own."""
    return config.is_moe and not settings.experts.in_router


def choose_devices(settings: ClusterConfig, num_groups: int, gpus: Gpus) -> Devices:
    """Return what computes on what.

    Args:
        settings: checked.
        num_groups: expert groups in processes of their own.
        gpus: that there are.

    Raises:
        BadConfig: GPUs were asked for that are not there, or that cannot be used so.
    """
    num_routers, num_experts = most_routers(settings), num_groups * most_replicas_per_group(settings)
    note = ""
    router = settings.router.device
    if router == "auto":
        note = _why_not(settings, num_routers + (0 if settings.experts.device == "cpu" else num_experts), gpus)
        router = "cpu" if note else "cuda"
    experts = settings.experts.device if num_experts else router
    if experts == "auto":
        is_room = num_routers + num_experts <= len(gpus.cards)
        experts = router if is_room else "cpu"
        if router == "cuda" and not is_room:
            note = f"experts on CPUs: {_too_few(num_routers + num_experts, gpus)}"
    devices = Devices(router=router, experts=experts, note=note if gpus.cards or gpus.problem else "")
    _check_number(devices, num_routers, num_experts, gpus)
    if devices.any_gpu and (conflict := _conflict(settings, router)):
        raise BadConfig(conflict)
    if settings.model.quantize == "fp8":
        _check_fp8(devices, gpus)
    return devices


def most_routers(settings: ClusterConfig) -> int:
    """Return the most routers there may be, those for long requests included."""
    most = settings.scaling.routers(settings.router.replicas).max_replicas
    return most + (settings.long.bounds().max_replicas if settings.long.from_tokens is not None else 0)


def most_replicas_per_group(settings: ClusterConfig) -> int:
    """Return the most replicas that each expert group may have."""
    return settings.scaling.experts(settings.experts.replicas_per_group).max_replicas


def _check_number(devices: Devices, num_routers: int, num_experts: int, gpus: Gpus) -> None:
    counts = {
        "router.device": num_routers if devices.router == "cuda" else 0,
        "experts.device": num_experts if devices.experts == "cuda" else 0,
    }
    wanted, names = sum(counts.values()), " and ".join(name for name, count in counts.items() if count)
    if wanted > len(gpus.cards):
        unseen = f" ({gpus.problem})" if gpus.problem else ""
        raise BadConfig(
            f"{names}: expected {wanted} GPUs, one for each process there may be, found {len(gpus.cards)}{unseen}; set "
            f"{names} to cpu, lower the number of replicas or add GPUs; {_ONE_PROCESS}"
        )


def _check_fp8(devices: Devices, gpus: Gpus) -> None:
    old = [card.name for card in gpus.cards if devices.any_gpu and card.capability < LEAST_CAPABILITY]
    found = ["cpu"] * ("cpu" in (devices.router, devices.experts)) + old
    if found:
        raise BadConfig(
            f"expected a GPU of the Hopper kind or later for weights in fp8, found {found[0]}: quantize to int8 or "
            "int4, or set router.device, and experts.device where experts have processes of their own, to cuda"
        )


def _why_not(settings: ClusterConfig, wanted: int, gpus: Gpus) -> str:
    """Return why routers that may take GPUs do not; empty: they do."""
    if len(gpus.cards) < wanted:
        return f"computing on CPUs: {gpus.problem or _too_few(wanted, gpus)}"
    old = next((card for card in gpus.cards if card.capability < LEAST_CAPABILITY), None)
    if old is not None:
        have, least = (".".join(map(str, each)) for each in (old.capability, LEAST_CAPABILITY))
        return (
            f"computing on CPUs: the kernels are for GPUs of compute capability {least} and later, {old.name} has "
            f"{have}; router.device=cuda takes it all the same, without them"
        )
    conflict = _conflict(settings, "cuda")
    return f"computing on CPUs: {conflict}" if conflict else ""


def _too_few(wanted: int, gpus: Gpus) -> str:
    return f"{wanted} processes want a GPU each, there are {len(gpus.cards)}; {_ONE_PROCESS}"


def _conflict(settings: ClusterConfig, router: Device) -> str:
    """Return what speaks against GPUs, as a message; empty: nothing."""
    if settings.router.dtype not in _DTYPES:
        return (
            f"router.dtype: expected bfloat16 or float16 on GPUs, found {settings.router.dtype}; change it, or set "
            "router.device=cpu and experts.device=cpu"
        )
    if settings.context.shards and router == "cuda":
        return (
            f"context.shards: expected 0 with routers on GPUs, whose keys and values stay on their card, found "
            f"{settings.context.shards}; set it to 0, or router.device=cpu"
        )
    return ""
