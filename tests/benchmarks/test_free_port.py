"""Ports for servers that listen seconds after the port was chosen."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from benchmarks import free_port
from benchmarks.free_port import find_free_port
from cluster.machine import check_port
from protos.errors import PortTaken


@pytest.fixture
def few(monkeypatch):
    """Three ports to choose from, none of them given yet."""
    ports = [find_free_port() for _ in range(3)]
    monkeypatch.setattr(free_port, "_candidates", lambda: ports)
    monkeypatch.setattr(free_port, "_given", set())
    return ports


def test_a_free_port_is_free():
    check_port(find_free_port(), "HTTP", "--http-port")


def test_the_kernel_gives_a_free_port_to_nobody_else():
    lowest, highest = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    if lowest <= free_port._FIRST:
        pytest.skip("the kernel gives away nearly all ports here")
    assert not any(lowest <= find_free_port() <= highest for _ in range(8))


def test_no_port_is_given_twice(few):
    assert sorted(find_free_port() for _ in few) == sorted(few)
    with pytest.raises(PortTaken):
        find_free_port()


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_port_in_use_is_passed_over(few, family, host):
    try:
        taken = socket.create_server((host, few[0]), family=family)
    except OSError:
        pytest.skip(f"no {host} on this machine")
    with taken:
        assert {find_free_port(), find_free_port()} == set(few[1:])


def test_workers_beside_each_other_choose_from_ports_of_their_own(monkeypatch):
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "3")
    of_each = []
    for worker in range(3):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", f"gw{worker}")
        of_each.append(set(free_port._candidates()))
    assert all(of_each)
    assert len(set.union(*of_each)) == sum(len(ports) for ports in of_each)
