"""How an expert is computed: one kernel per kind of device, chosen here and nowhere else.

kernel       what a kernel offers
reference    plain torch, obviously right
torch_cpu    the fastest path on a CPU
"""

from __future__ import annotations

import torch

from experts.kernels import torch_cpu
from experts.kernels.kernel import Kernel, PackedExpert
from experts.kernels.reference import ReferenceKernel

__all__ = ["Kernel", "PackedExpert", "choose"]


def choose(device: torch.device, dtype: torch.dtype) -> Kernel:
    """Return the fastest kernel for weights on a device in a dtype.

    Not by the number of tokens: a kernel owns the layout of the resident weights, so one that knows several ways
    chooses among them itself.
    """
    if device.type == "cpu" and torch_cpu.is_supported(dtype):
        return torch_cpu.PackedCpuKernel()
    return ReferenceKernel()
