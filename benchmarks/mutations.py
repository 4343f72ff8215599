"""Requests made wrong at random, from a seed: bytes changed, fields of other types and sizes, HTTP that is none."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

WEIRD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, 1e-320),
    *(float("nan"), float("inf"), "", "a", "\x00", "\ud800", "\uffff" * 9, "a" * 5000, "1", "null"),
    *([], [[]], [None], [0] * 3000, ["a"] * 300, [[0], ["a"]], [-1], [2**40], [1.5]),
    *({}, {"": {}}, {"role": "user"}, {"role": 1, "content": []}),
    *([{"role": "user", "content": None}], [{"role": "tool", "content": "\x00"}]),
    [{"role": "user", "content": [{"type": "image"}]}],
)
"""Values of JSON that a field may get."""


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with a few places changed, taken out, doubled or cut off."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(6):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1 if out:
                out[at % len(out)] = rng.randrange(256)
            case 2:
                out[at:at] = rng.randbytes(rng.randint(1, 16))
            case 3:
                del out[at : at + rng.randint(1, 16)]
            case 4:
                out[at:at] = out[at : at + rng.randint(1, 64)]
            case 5 if rng.random() < 0.2:
                del out[at:]
    return bytes(out)


def mutate_json(body: dict[str, Any], fields: Sequence[str], rng: random.Random) -> bytes:
    """Return a body with fields that are wrong, or text that is no JSON at all."""
    if rng.random() < 0.05:
        depth = rng.choice((50, 2000, 100_000))
        return rng.choice((b"[", b'{"prompt":')) * depth
    changed = dict(body)
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(fields)
        if rng.random() < 0.15:
            changed.pop(name, None)
        else:
            changed[name] = rng.choice(WEIRD)
    text = json.dumps(changed).encode()
    return mutate_bytes(text, rng) if rng.random() < 0.3 else text


def raw_http(rng: random.Random) -> bytes:
    """Return what arrives on a connection and is no sound request of HTTP."""
    path = rng.choice(
        (
            "/v1/completions",
            "/v1/models/" + "%00" * rng.randint(0, 9),
            "/health",
            "*",
            "//",
            "/%ff%fe",
            "/?" + "a" * 9000,
        )
    )
    method = rng.choice(("POST", "GET", "PUT", "OPTIONS", "TRACE", "PRI", "", "G\x00T", "HEAD", "DELETE"))
    version = rng.choice(("HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/9", ""))
    headers = ["Host: a"] if rng.random() < 0.8 else []
    for _ in range(rng.randint(0, 3)):
        headers.append(
            rng.choice(
                (
                    "Content-Length: -1",
                    "Content-Length: 99999999999999999999",
                    "Content-Length: 3",
                    "Content-Length: x",
                    "Transfer-Encoding: chunked",
                    "Transfer-Encoding: gzip",
                    "Connection: upgrade",
                    "Upgrade: websocket",
                    "Expect: 100-continue",
                    "Authorization: " + "A" * 5000,
                    "X: " + "a" * 70_000,
                    "no colon",
                    ": empty",
                    "A\x00: b",
                    "Content-Encoding: gzip",
                    "Content-Type: multipart/form-data; boundary=",
                )
            )
        )
    head = f"{method} {path} {version}\r\n" + "".join(f"{each}\r\n" for each in headers) + "\r\n"
    body = rng.choice((b"", b"{}", b"zzz\r\n", b"3\r\nabc\r\n0\r\n\r\n", b"ffffffffffffffffff\r\n", rng.randbytes(40)))
    data = head.encode("latin-1") + body
    return mutate_bytes(data, rng) if rng.random() < 0.5 else data
