"""What a router computes with: its share of the model, and the routed experts where they are in its process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.deployment_plan import DeploymentPlan
from cluster.torch_names import device_of, dtype_of
from experts.weights import ExpertWeights
from models.checkpoint import Checkpoint, as_stored
from models.llama4.decoder import Decoder, load_decoder
from router.transport.local import LocalTransport


@dataclass(frozen=True, slots=True)
class RouterModel:
    """Weights, on the router's device."""

    decoder: Decoder
    experts: ExpertWeights | None
    """All routed experts; None: they are in processes of their own, or there are none."""

    def local_transport(self) -> LocalTransport:
        """Return the way to experts in this process."""
        assert self.experts is not None
        return LocalTransport(self.experts.run, self.experts.held_in)


def load_router_model(
    plan: DeploymentPlan, checkpoint: Checkpoint, progress: Callable[[int, int], None]
) -> RouterModel:
    """Read what a plan's routers hold.

    Args:
        plan: what to run.
        checkpoint: its model's, freshly opened.
        progress: called with (bytes read, bytes to read in all), many times.

    Raises:
        BadCheckpoint: the weights cannot be read.

    Cost: blocks on the disk.
    """
    device, dtype = device_of(plan.devices.router), dtype_of(plan.dtype)
    quantize = plan.settings.model.quantize
    files = as_stored(checkpoint, quantize, device)
    total_bytes = checkpoint.total_bytes if plan.experts_in_router else checkpoint.router_bytes

    def tell(_done: int, _total: int) -> None:
        progress(checkpoint.bytes_read, total_bytes)

    decoder = load_decoder(files, dtype=dtype, device=device, quantize=quantize, progress=tell)
    experts = None
    if plan.experts_in_router:
        every = range(plan.config.num_experts)
        experts = ExpertWeights.load(files, every, dtype, tell, device=device, quantize=quantize)
    return RouterModel(decoder, experts)
