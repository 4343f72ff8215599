"""How experts are computed: one kernel per kind of device, chosen here and nowhere else.

kernel       what a kernel offers
reference    plain torch, obviously right
torch_cpu    the fastest path on a CPU
triton_gpu   the fastest path on a GPU
"""

from __future__ import annotations

import torch

from experts.kernels.kernel import Kernel
from experts.kernels.reference import ReferenceKernel
from experts.kernels.torch_cpu import TorchCpuKernel
from models.gpu.device import is_supported
from models.linear import Quantization, check_rounding

__all__ = ["Kernel", "choose"]


def choose(device: torch.device, quantize: Quantization | None = None) -> Kernel:
    """Return the fastest kernel for weights on a device, in full precision or rounded.

    Not by the number of tokens: a kernel owns the layout of the resident weights, so one that knows several ways
    chooses among them itself.

    Raises:
        BadConfig: nothing computes with weights rounded so on that device.
    """
    if is_supported(device):
        from experts.kernels.triton_gpu import TritonKernel  # processes without a GPU do not pay for Triton

        return TritonKernel(device, quantize)
    check_rounding(quantize, device)
    return TorchCpuKernel(quantize) if device.type == "cpu" or quantize else ReferenceKernel()
