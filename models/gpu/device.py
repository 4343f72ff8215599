"""Which GPUs the kernels are for."""

from __future__ import annotations

import torch

LEAST_CAPABILITY = (9, 0)
"""Of the first NVIDIA cards that have the instructions by which rounded weights become bfloat16: Hopper."""


def is_supported(device: torch.device) -> bool:
    """Tell whether weights on a device can be multiplied by Triton's kernels; no, if there is no such device."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
