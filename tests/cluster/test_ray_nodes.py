"""Ray promises nothing about how a node is drained: this has to hold for the version that is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from tempfile import TemporaryDirectory

from tests.conftest import ROOT

# In a process of its own: the node that is drained is the one this Ray consists of.
_SCRIPT = """
import sys, time
import ray
from cluster.ray_nodes import _client, drain_node, draining_nodes, follow_draining_nodes, live_nodes

ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=80 * 1024**2, log_to_driver=False,
         _temp_dir=sys.argv[1])

@ray.remote(num_cpus=0)
class Replica:
    def node(self):
        return ray.get_runtime_context().get_node_id()

replica = Replica.remote()
node = ray.get(replica.node.remote())
(live,) = live_nodes()
assert (live.node_id, live.is_head) == (node, True), live
assert draining_nodes() == frozenset()
heard = []
follow_draining_nodes(heard.append)
drain_node(node, "a test says so")
drain_node(node, "a test says so twice")

def wait(holds):
    give_up_at = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)

wait(lambda: draining_nodes() == {node})
wait(lambda: heard == [{node}])
late = []
follow_draining_nodes(late.append)
assert late == [{node}], "who asks later is told at once"
in_a_day_s = int(time.time()) + 86_400
drain_node(node, "a test knows when", in_a_day_s)
wait(lambda: _client().get_draining_nodes(timeout=2) == {node: 1000 * in_a_day_s})
drain_node(node, "a test has forgotten when")
wait(lambda: _client().get_draining_nodes(timeout=2) == {node: 0})  # the last word counts
assert ray.get(replica.node.remote()) == node, "what runs there goes on"
ray.shutdown()
"""


def test_a_node_that_is_drained_is_told_apart_and_what_runs_there_goes_on():
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
    with TemporaryDirectory(prefix="r") as folder:  # short, unlike pytest's: there will be sockets below
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _SCRIPT, folder],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=ROOT,
            env=os.environ | environment,
        )
    assert done.returncode == 0, done.stderr[-2000:]
