"""What JSON Schema says of the bodies clients may send: types from bodies.py, values from where they are checked."""

from __future__ import annotations

import math
from typing import Any

from cluster.limits import (
    MAX_CHOICES,
    MAX_LOGPROBS,
    MAX_PROMPTS,
    MAX_STOP_CHARACTERS,
    MAX_STOP_IDS,
    MAX_STOP_TEXTS,
)
from cluster.openai.bodies import ChatBody, CommonBody
from cluster.openai.chat import CHAT_ROLES
from cluster.openai.unsupported import NEUTRAL_VALUES
from cluster.served_model import ServedModel
from cluster.validation import SEEDS
from router.sampling_bounds import SAMPLING_BOUNDS

Schema = dict[str, Any]

_NULL: Schema = {"type": "null"}


def request_schema(body: type[CommonBody], model: ServedModel) -> Schema:
    """Return the JSON schema of a body.

    Not in it, since no schema can say it: that a prompt and `max_tokens` fit the context, and that `n` times the
    prompts are at most 128.

    Args:
        body: of which endpoint.
        model: what is served.
    """
    schema = body.model_json_schema()
    for name, definition in schema.pop("$defs").items():
        _inline(schema, f"#/$defs/{name}", definition)
    properties = schema["properties"]
    for name, values in _values(model).items():
        if name in properties:
            properties[name] = {**properties[name], **values}
    if body is ChatBody:
        properties["messages"] = _messages()
        properties["top_logprobs"] |= _or_null(type="integer", minimum=0, maximum=MAX_LOGPROBS)
        properties["max_completion_tokens"] |= properties["max_tokens"]
    else:
        properties["prompt"] = {**properties["prompt"], **_prompt(model)}
        properties["logprobs"] |= _or_null(type="integer", minimum=0, maximum=MAX_LOGPROBS)
    for name, neutral in NEUTRAL_VALUES.items():
        properties[name] = {"enum": [*neutral, None], "description": "Not supported: no other value is taken."}
    schema["allOf"] = [_needs("stream_options", "object", "stream")]
    if body is ChatBody:
        schema["allOf"].append(_needs("top_logprobs", "integer", "logprobs"))
    return schema


def _values(model: ServedModel) -> dict[str, Schema]:
    """Return what fields of both bodies may be."""
    token = {"type": "integer", "minimum": 0, "maximum": model.config.vocab_size - 1}
    text = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS}
    texts = {"type": "array", "items": text, "maxItems": MAX_STOP_TEXTS if model.has_tokenizer else 0}
    stop = [text, texts, _NULL] if model.has_tokenizer else [texts, _NULL]
    most = model.context_length - 1
    values = {each.field: _or_null(**_range(each)) for each in SAMPLING_BOUNDS}
    return {
        **values,
        "model": {"anyOf": [{"enum": [model.name, ""]}, _NULL]},
        "top_k": _or_null(type="integer", minimum=-1),
        "seed": _or_null(type="integer", minimum=SEEDS.start, maximum=SEEDS.stop - 1),
        "max_tokens": _or_null(type="integer", minimum=1),
        "n": _or_null(type="integer", minimum=1, maximum=MAX_CHOICES),
        "stop": {"anyOf": stop},
        "stop_token_ids": _or_null(type="array", items=token, maxItems=min(MAX_STOP_IDS, most)),
        "prompt_logprobs": _or_null(type="integer", minimum=0, maximum=MAX_LOGPROBS),
        "priority": _or_null(type="integer", minimum=-(2**31), maximum=2**31 - 1),
    }


def _range(bounds: Any) -> Schema:
    low = "minimum" if bounds.low_is_allowed else "exclusiveMinimum"
    high = {} if math.isinf(bounds.high) else {"maximum": bounds.high}
    return {"type": "integer" if bounds.is_whole else "number", low: bounds.low, **high}


def _prompt(model: ServedModel) -> Schema:
    token = {"type": "integer", "minimum": 0, "maximum": model.config.vocab_size - 1}
    ids = {"type": "array", "items": token, "minItems": 1, "maxItems": model.context_length - 1}
    kinds: list[Schema] = [ids, {"type": "array", "items": ids, "minItems": 1, "maxItems": MAX_PROMPTS}]
    if model.has_tokenizer:
        text = {"type": "string", "minLength": 1}
        kinds += [text, {"type": "array", "items": text, "minItems": 1, "maxItems": MAX_PROMPTS}]
    return {"anyOf": kinds}


def _messages() -> Schema:
    part = {
        "type": "object",
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
        "required": ["type", "text"],
    }
    content = {"anyOf": [{"type": "string"}, {"type": "array", "items": part}]}
    message = {
        "type": "object",
        "properties": {
            "role": {"enum": list(CHAT_ROLES)},
            "content": content,
            "tool_calls": {"enum": [[], None], "description": "Not supported: no other value is taken."},
        },
        "required": ["role", "content"],
    }
    return {"type": "array", "items": message, "minItems": 1, "title": "Messages"}


def _or_null(**schema: Any) -> Schema:
    return {"anyOf": [schema, _NULL]}


def _needs(name: str, kind: str, switch: str) -> Schema:
    """Return that a field makes sense only where another one is true."""
    return {
        "if": {"properties": {name: {"type": kind}}, "required": [name]},
        "then": {"properties": {switch: {"const": True}}, "required": [switch]},
    }


def _inline(schema: Any, reference: str, definition: Schema) -> None:
    """Put a definition wherever it is referred to: a page's bodies have no place for definitions of their own."""
    for value in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        if isinstance(value, dict) and value.get("$ref") == reference:
            del value["$ref"]
            value.update(definition)
        _inline(value, reference, definition)
