"""Whether a device is one that the kernels are for."""

from __future__ import annotations

import torch

from models.gpu.capability import LEAST_CAPABILITY


def is_supported(device: torch.device) -> bool:
    """Tell whether weights on a device can be multiplied by Triton's kernels; no, if there is no such device."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
