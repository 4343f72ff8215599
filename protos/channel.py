"""The gRPC settings both ends of Herd's own channels agree on."""

from __future__ import annotations

import grpc

from protos.tls import Identity

PEER_NAME = "herd"
"""The DNS name in the certificates of Herd's own processes: their addresses change with every start, and whoever their
private authority signed for belongs to this Herd."""

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Most bytes of tensors in a message, at both ends of every channel: 6,553 tokens of 5,120 bf16 values."""

# The tensor of a largest dispatch and the fields around it.
_MESSAGE_BYTES = MAX_MESSAGE_BYTES + 64 * 1024
_KEEPALIVE_MS = 10_000

Options = list[tuple[str, int]]


def _shared_options() -> Options:
    return [
        ("grpc.max_send_message_length", _MESSAGE_BYTES),
        ("grpc.max_receive_message_length", _MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        # Without these two an idle stream pings twice and never again, and a ping may take a minute: a machine that
        # vanished would be found by the first dispatch, which waits for it in vain.
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_MS),
    ]


def channel_options() -> Options:
    """Return the options of a client's channel.

    No proxy: replicas are reached directly, whatever the environment says. A subchannel pool of its own: two
    channels to one replica are two connections, so that closing one leaves the other alone.
    """
    return [*_shared_options(), ("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]


def server_options() -> Options:
    """Return the options of a server, which lets clients ping as often as `channel_options` makes them."""
    return [
        *_shared_options(),
        ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.so_reuseport", 0),
    ]


def open_channel(address: str, identity: Identity | None) -> grpc.Channel:
    """Return a channel to another process of this Herd.

    Args:
        address: host:port, or unix:PATH, which stays on this host and is never encrypted.
        identity: what to show and to believe; None: no encryption.
    """
    if identity is None or address.startswith("unix:"):
        return grpc.insecure_channel(address, options=channel_options())
    options = [*channel_options(), ("grpc.ssl_target_name_override", PEER_NAME)]
    return grpc.secure_channel(address, identity.channel_credentials(), options=options)
