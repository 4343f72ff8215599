"""TLS at the front door's two ports: who is believed, who is not, and certificates that change meanwhile."""

from __future__ import annotations

import asyncio
import http.client
import ssl
import threading
from contextlib import contextmanager
from dataclasses import replace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.free_port import find_free_port
from cluster.cli.generate import Options, stream_answer
from cluster.config_source import load_config
from cluster.launch.endpoints import Endpoints
from cluster.listeners import Listeners
from cluster.service import InferenceService
from protos import watched_files
from protos.errors import BadConfig, ReplicaUnavailable
from tests.certificates import Authority

WAIT_S = 10


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture(autouse=True)
def looks_at_once(monkeypatch):
    monkeypatch.setattr(watched_files, "_LOOK_EVERY_S", 0)


class Door:
    """Listeners in a thread of their own."""

    def __init__(self, service, signed, ca=None) -> None:
        self.http_port, self.grpc_port = find_free_port(), find_free_port()
        assignments = ["http.host=127.0.0.1", f"http.port={self.http_port}", f"grpc.port={self.grpc_port}"]
        assignments += [f"tls.cert={signed.cert}", f"tls.key={signed.key}"]
        assignments += [] if ca is None else [f"tls.client_ca={ca}"]
        self.settings = load_config(None, assignments)
        self._listeners = Listeners(service, self.settings)

    @contextmanager
    def open(self):
        ready, ending = threading.Event(), []

        async def serve():
            await self._listeners.start()
            ending.extend([asyncio.get_running_loop(), asyncio.Event()])
            ready.set()
            await ending[1].wait()
            await self._listeners.stop(grace_s=2)

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        assert ready.wait(WAIT_S)
        try:
            yield self
        finally:
            ending[0].call_soon_threadsafe(ending[1].set)
            thread.join()

    def http(self, ca, client=None) -> int:
        context = ssl.create_default_context(cafile=ca)
        if client is not None:
            context.load_cert_chain(client.cert, client.key)
        connection = http.client.HTTPSConnection(f"127.0.0.1:{self.http_port}", timeout=WAIT_S, context=context)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status
        finally:
            connection.close()

    def grpc(self, ca, client=None) -> int:
        pair = (None, None) if client is None else (client.key.read_bytes(), client.cert.read_bytes())
        credentials = grpc.ssl_channel_credentials(ca.read_bytes(), *pair)
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(f"127.0.0.1:{self.grpc_port}", credentials, options=options) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return stub.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S).status

    def answers(self, ca, client=None) -> bool:
        return self.http(ca, client) == 200 and self.grpc(ca, client) == health_pb2.HealthCheckResponse.SERVING

    def refuses(self, ca, client=None) -> bool:
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
            self.http(ca, client)
        with pytest.raises(grpc.RpcError) as caught:
            self.grpc(ca, client)
        return caught.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def service(router, text_model):
    return InferenceService(text_model, router)


def test_clients_that_believe_the_authority_are_answered_on_both_ports(service, authority, tmp_path):
    stranger = Authority(tmp_path, "stranger")
    with Door(service, authority.sign("door")).open() as door:
        assert door.answers(authority.ca)
        assert door.refuses(stranger.ca)
        connection = http.client.HTTPConnection(f"127.0.0.1:{door.http_port}", timeout=WAIT_S)
        connection.request("GET", "/health")
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            connection.getresponse()
        connection.close()


def test_clients_need_a_certificate_that_the_door_believes(service, authority, tmp_path):
    good, expired = authority.sign("good"), authority.sign("expired", days=-1)
    stranger = Authority(tmp_path, "stranger").sign("other")
    with Door(service, authority.sign("door"), authority.ca).open() as door:
        assert door.answers(authority.ca, good)
        for client in (None, expired, stranger):
            assert door.refuses(authority.ca, client)


def test_an_expired_certificate_of_the_door_is_refused_by_its_clients(service, authority):
    with Door(service, authority.sign("door", days=-1)).open() as door:
        assert door.refuses(authority.ca)


def test_rotated_files_count_at_the_next_connection(service, authority, tmp_path):
    signed, client = authority.sign("door"), authority.sign("client")
    new = Authority(tmp_path, "new")
    new_signed, new_client = new.sign("new_door"), new.sign("new_client")
    with Door(service, signed, authority.ca).open() as door:
        assert door.answers(authority.ca, client)
        old_ca = authority.ca.read_bytes()
        new_signed.cert.replace(signed.cert)  # for a moment, certificate and key do not belong together
        assert door.answers(authority.ca, client)
        new_signed.key.replace(signed.key)
        authority.ca.write_bytes(new.ca.read_bytes())
        assert door.answers(new.ca, new_client)
        assert door.refuses(new.ca, client)
        (tmp_path / "old.pem").write_bytes(old_ca)
        assert door.refuses(tmp_path / "old.pem", new_client)


def test_unusable_files_are_named_at_the_start(service, authority, tmp_path):
    signed, other = authority.sign("door"), authority.sign("other")
    with pytest.raises(BadConfig, match=r"other\.key unusable"):
        Door(service, replace(signed, key=other.key))
    with pytest.raises(BadConfig, match=r"none\.pem"):
        Door(service, replace(signed, cert=tmp_path / "none.pem"))


def test_the_command_line_takes_certificates_from_the_environment(service, authority, monkeypatch, capsys):
    client = authority.sign("client")
    with Door(service, authority.sign("door"), authority.ca).open() as door:
        address = f"https://127.0.0.1:{door.grpc_port}"
        options = Options(prompt="Hello", raw=True, max_tokens=2)
        with pytest.raises(ReplicaUnavailable):
            stream_answer(options, address)
        for name, file in (("HERD_CA", authority.ca), ("HERD_CERT", client.cert), ("HERD_KEY", client.key)):
            monkeypatch.setenv(name, str(file))
        stream_answer(options, address)
    assert capsys.readouterr().out == "He\n"


@pytest.mark.parametrize("asks", [False, True])
def test_a_start_sees_that_the_ports_serve(service, authority, asks):
    door = Door(service, authority.sign("door"), authority.ca if asks else None)
    endpoints = Endpoints(
        http_host="127.0.0.1",
        http_port=door.http_port,
        grpc_port=door.grpc_port,
        has_tls=True,
        asks_for_certificate=asks,
    )
    assert endpoints.http == f"https://127.0.0.1:{door.http_port}"
    assert not endpoints.answer()
    with door.open():
        assert endpoints.answer()
