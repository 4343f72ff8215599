"""The machines of a cluster's roles, as they are found by a task on one node of each. Ray has to be there already.

Where no node offers a role yet, the task waits for one, which is also what makes Ray's autoscaler start it.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

import ray
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.gpus import Gpus
from cluster.machine import Machine, read_machine, whole_bytes
from protos.errors import BadConfig


def find_machines(roles: tuple[str, ...], timeout_s: float) -> dict[str, Machine]:
    """Return a node's machine for each role, with all of its memory: what runs there now may be about to go.

    Args:
        roles: resources of `cluster.roles`.
        timeout_s: seconds for nodes to start. Blocks until there is one of each.

    Raises:
        BadConfig: no node offered a role in time.
    """
    give_up_at = time.monotonic() + timeout_s
    found = {role: _ask(role) for role in roles}
    machines = {}
    for role, reference in found.items():
        try:
            machines[role] = ray.get(reference, timeout=max(give_up_at - time.monotonic(), 0.1))
        except GetTimeoutError:
            for each in found.values():
                ray.cancel(each, force=True)
            raise BadConfig(
                f"expected a node that offers the resource {role} within {timeout_s:g} s, found none; see why its "
                "worker does not start, or add one"
            ) from None
    return machines


def _ask(role: str) -> ray.ObjectRef[Machine]:
    """Ask a node of a role, whose resource may be taken; where there is none, the first that comes."""
    nodes = [each["NodeID"] for each in ray.nodes() if each["Alive"] and each["Resources"].get(role, 0) > 0]
    task = ray.remote(num_cpus=0, max_calls=1)(_whole_machine)
    if nodes:
        where = NodeAffinitySchedulingStrategy(nodes[0], soft=False)
        return task.options(scheduling_strategy=where).remote()
    return task.options(resources={role: 1}).remote()


def _whole_machine() -> Machine:
    """Return the machine that this process runs on, as if nothing else did."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides the GPUs from who asks for none
    machine = read_machine()
    cards = tuple(replace(card, free_bytes=card.memory_bytes) for card in machine.gpus.cards)
    return replace(machine, free_bytes=whole_bytes(), gpus=Gpus(cards, machine.gpus.problem))
