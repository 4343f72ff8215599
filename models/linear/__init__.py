"""Matrix products with weights that stay: one interface, and the fastest form for a device, a dtype and a shape.

linear       what every form offers
plain        torch's own product, obviously right, everywhere
onednn       the fastest full-precision products on a CPU
"""

from __future__ import annotations

from torch import Tensor

from models.linear import onednn
from models.linear.linear import Linear
from models.linear.plain import PlainLinear

__all__ = ["Linear", "pack_linear", "share_linear"]


def pack_linear(weight_OI: Tensor) -> Linear:
    """Return the fastest product with a weight; the argument may be freed after.

    Not by the number of rows: a form that knows several ways chooses among them at each call.

    Args:
        weight_OI: [O, I], on any device, in any dtype, with any strides.
    """
    if not onednn.is_supported(weight_OI):
        return PlainLinear(weight_OI)
    if onednn.is_small(weight_OI):
        return onednn.SmallLinear(weight_OI)
    return onednn.PackedLinear(weight_OI)


def share_linear(weight_OI: Tensor) -> Linear:
    """Return the fastest product with a weight that others read too: no bytes besides the argument's."""
    return onednn.UnpackedLinear(weight_OI) if onednn.is_supported(weight_OI) else PlainLinear(weight_OI)
