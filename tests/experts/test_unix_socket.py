"""Sockets of replicas come and go with them, killed ones included."""

from __future__ import annotations

import socket

from experts.unix_socket import make_socket_path


def test_the_folder_of_a_killed_replica_goes_when_the_next_one_starts(tmp_path):
    killed = make_socket_path(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(killed))
        listening.listen()
    # Closed without being removed, as by a kill.
    make_socket_path(tmp_path)
    assert not killed.parent.exists()


def test_the_sockets_of_replicas_that_live_stay(tmp_path):
    path = make_socket_path(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        make_socket_path(tmp_path)
        assert path.exists()


def test_a_folder_that_was_just_made_stays(tmp_path):
    path = make_socket_path(tmp_path)
    make_socket_path(tmp_path)
    assert path.parent.exists()
