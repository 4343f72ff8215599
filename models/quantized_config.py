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
    if not fields.is_set("quantization_config"):
        return
    config = fields.child("quantization_config")
    assert config is not None
    method = config.text("quant_method")
    if method == "fbgemm_fp8":
        return
    if method != "compressed-tensors":
        raise _refuse(config, method)
    config.refuse(("transform_config",), f"Herd reads {_READ}; use another release of the model")
    groups = config.child("config_groups")
    if groups is None:
        raise config.fail("config_groups", "an object that says how weights are kept")
    for name in groups:
        weights = _weights(groups, name)
        kind = weights.integer("num_bits", 0), weights.text("type", "int"), weights.text("strategy", "tensor")
        if kind not in ((8, "float", "channel"), (4, "int", "group"), (4, "int", "channel")):
            raise _refuse(weights, " ".join(map(str, kind)))
        if not weights.flag("symmetric", True):
            raise _refuse(weights, "zero points")


def _weights(groups: JsonFields, name: str) -> JsonFields:
    group = groups.child(name)
    weights = None if group is None else group.child("weights")
    if weights is None:
        raise groups.fail(name, "an object that says how weights are kept")
    return weights


def _refuse(fields: JsonFields, found: str) -> BadConfig:
    return BadConfig(
        f"{fields.file}: quantization_config: expected {_READ}, found {found}, which is not read: use another release "
        "of the model"
    )
