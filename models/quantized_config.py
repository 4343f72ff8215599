"""Which quantised releases of a model are read, by config.json's quantization_config."""

from __future__ import annotations

from models.json_fields import JsonFields
from protos.errors import BadConfig

_READ = "fp8 with a scale for each output (compressed-tensors or fbgemm_fp8) or symmetric int4 in groups (w4a16)"


def check_quantization(fields: JsonFields) -> None:
    """Refuse weights in a form that Herd would read as something else.

    How each tensor is kept, its own file says (`models/checkpoint/quantized_layout.py`).

    Raises:
        BadConfig: the form is another, or not known.
    """
    config = fields.child("quantization_config")
    if config is None:
        return
    method = config.text("quant_method")
    if method == "fbgemm_fp8":
        return
    if method != "compressed-tensors":
        raise _refuse(config, "quant_method", method)
    groups = config.child("config_groups")
    if groups is None:
        raise config.fail("config_groups", "an object that says how weights are kept")
    for name in groups:
        weights = _weights(groups, name)
        kind = weights.integer("num_bits", 0), weights.text("type", "int"), weights.text("strategy", "tensor")
        if kind not in ((8, "float", "channel"), (4, "int", "group"), (4, "int", "channel")):
            raise _refuse(weights, "strategy", " ".join(map(str, kind)))
        if not weights.flag("symmetric", True):
            raise _refuse(weights, "symmetric", "zero points")


def _weights(groups: JsonFields, name: str) -> JsonFields:
    group = groups.child(name)
    weights = None if group is None else group.child("weights")
    if weights is None:
        raise groups.fail(name, "an object that says how weights are kept")
    return weights


def _refuse(fields: JsonFields, key: str, found: str) -> BadConfig:
    return fields.fail(key, f"{_READ}; {found} is not read, use another release of the model")
