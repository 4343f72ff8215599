"""Where this process runs: its machine, and what its Ray node's labels say of that."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence

import ray

from router.location import Location

MACHINE = "HERD_MACHINE"
"""Environment variable with the machine's name, which pods do not know otherwise: the chart has it set."""


def own_location(labels: Sequence[str]) -> Location:
    """Return where this process, one of Ray's, runs.

    A pod has a name of its own for its host, and several share a machine: $HERD_MACHINE tells which.

    Args:
        labels: whose equal values mean near, narrowest first.
    """
    machine = os.environ.get(MACHINE) or socket.gethostname()
    return Location(machine=machine, domains=domains_of(ray.get_runtime_context().get_node_labels(), labels))


def domains_of(found: Mapping[str, object], labels: Sequence[str]) -> tuple[str, ...]:
    """Return the values of labels, of a node of Ray's or of Kubernetes; empty where it has none."""
    return tuple(str(found.get(label) or "") for label in labels)
