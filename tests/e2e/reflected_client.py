"""A gRPC client that knows a server only through reflection."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


class ReflectedClient:
    """Calls methods by name, requests and answers as JSON-like dictionaries.

    Args:
        address: host:port.
        options: of the channel.
    """

    def __init__(self, address: str, *options: tuple[str, object]) -> None:
        self.channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1), *options])
        self._database = ProtoReflectionDescriptorDatabase(self.channel)
        self._pool = DescriptorPool(self._database)

    def services(self) -> list[str]:
        """Return the services the server tells of."""
        return sorted(self._database.get_services())

    def request(self, method: str, fields: dict[str, object]) -> Message:
        """Return a request message of a method, "package.Service/Method"."""
        service, name = method.split("/")
        kind = GetMessageClass(self._pool.FindServiceByName(service).FindMethodByName(name).input_type)
        return json_format.ParseDict(fields, kind())

    def call(self, method: str, timeout_s: float = 30, **fields: object) -> dict[str, object]:
        """Call a unary method."""
        invoke = self.channel.unary_unary(
            f"/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=self._reader(method),
        )
        return to_dict(invoke(self.request(method, fields), timeout=timeout_s))

    def stream(self, method: str, timeout_s: float | None = 60, **fields: object) -> Iterator[Message]:
        """Call a server-streaming method; what it returns is also the grpc call, to cancel for example."""
        invoke = self.channel.unary_stream(
            f"/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=self._reader(method),
        )
        return invoke(self.request(method, fields), timeout=timeout_s)

    def _reader(self, method: str):
        service, name = method.split("/")
        return GetMessageClass(self._pool.FindServiceByName(service).FindMethodByName(name).output_type).FromString

    def __enter__(self) -> ReflectedClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()


def to_dict(message: Message) -> dict[str, object]:
    """Return a message as plain data, every field there."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
