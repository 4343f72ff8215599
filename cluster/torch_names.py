"""What a plan names, as torch knows it. A plan has names, because it travels to processes without torch."""

from __future__ import annotations

import torch

from cluster.devices import Device
from router.kv_cache.layout import FloatDtype


def device_of(name: Device) -> torch.device:
    """Return a device as it is called in the process that was given it."""
    return torch.device("cuda", 0) if name == "cuda" else torch.device("cpu")


def dtype_of(name: FloatDtype) -> torch.dtype:
    """Return the dtype that is called so."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype
