"""Which layers' experts are on the router's own GPU, all of them, so that no host needs to know who visits whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from models.llama4.decoder import Decoder
from router.decode_inputs import DecodeCache
from router.transport.base import Transport
from router.transport.local import LocalTransport

if TYPE_CHECKING:  # Triton: routers on a CPU do not pay for it
    from models.gpu.moe import ResidentExperts
    from router.decode_graphs import DecodeGraphs
    from router.decode_segments import DecodeSegments


def resident_experts(decoder: Decoder, transport: Transport) -> dict[int, ResidentExperts]:
    """Return the experts by layer that stay beside the decoder, on its GPU; nothing where they are elsewhere."""
    if not (decoder.has_gpu_kernels and isinstance(transport, LocalTransport) and transport.resident):
        return {}
    from models.gpu.moe import ResidentExperts

    found: dict[int, ResidentExperts] = {}
    for layer in decoder.config.moe_layers:
        shared = decoder.layers[layer].shared
        assert shared is not None
        experts = ResidentExperts.of(transport.resident(layer), shared, decoder.config.experts_per_token)
        if experts is not None:
            found[layer] = experts
    return found


def record_steps(
    decoder: Decoder,
    transport: Transport,
    experts: Mapping[int, ResidentExperts],
    cache: DecodeCache,
    give_sign: Callable[[], None],
) -> DecodeGraphs | DecodeSegments | None:
    """Return decode steps that are recorded, whole ones if experts are here; None where the decoder is not a GPU's.

    Arguments and cost as of `DecodeGraphs` and `DecodeSegments`.
    """
    has_all_keys = cache.storage.plain is not None and cache.plan.has_global == bool(cache.layout.global_layers)
    if not (decoder.has_gpu_kernels and has_all_keys):
        return None
    if set(experts) == set(decoder.config.moe_layers):
        from router.decode_graphs import DecodeGraphs

        return DecodeGraphs(decoder, experts, cache)
    from router.decode_segments import DecodeSegments

    return DecodeSegments(decoder, transport, cache, give_sign)
