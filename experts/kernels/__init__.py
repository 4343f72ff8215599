"""How experts are computed: one kernel per kind of device, chosen here and nowhere else.

kernel       what a kernel offers
reference    plain torch, obviously right
torch_cpu    the fastest path on a CPU
"""

from __future__ import annotations

import torch

from experts.kernels.kernel import Kernel
from experts.kernels.reference import ReferenceKernel
from experts.kernels.torch_cpu import TorchCpuKernel
from models.linear import Quantization

__all__ = ["Kernel", "choose"]


def choose(device: torch.device, quantize: Quantization | None = None) -> Kernel:
    """Return the fastest kernel for weights on a device, in full precision or rounded.

    Not by the number of tokens: a kernel owns the layout of the resident weights, so one that knows several ways
    chooses among them itself.
    """
    return TorchCpuKernel(quantize) if device.type == "cpu" or quantize else ReferenceKernel()
