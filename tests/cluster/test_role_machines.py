"""Asking a real Ray for the machines of its roles. Ray runs in a process of its own, which ends with it."""

import json
import os
import socket
import subprocess
import sys
import tempfile

from cluster.machine import read_machine, whole_bytes

PROGRAM = """
import json, logging, sys
import ray
from cluster.own_location import own_location
from cluster.role_machines import find_machines
from protos.errors import BadConfig

ray.init(address="local", num_cpus=2, resources={"herd_router": 1}, labels={"zone": "a"},
         include_dashboard=False, log_to_driver=False, object_store_memory=100 * 1024**2,
         logging_level=logging.ERROR, _temp_dir=sys.argv[1])

@ray.remote(num_cpus=0, resources={"herd_router": 1})
class Replica:
    def is_there(self):
        return True

replica = Replica.remote()
assert ray.get(replica.is_there.remote(), timeout=60)
machine = find_machines(("herd_router",), 60)["herd_router"]
try:
    find_machines(("herd_experts",), 0.5)
    missing = ""
except BadConfig as error:
    missing = error.message
located = ray.remote(num_cpus=0)(lambda: own_location(("rack", "zone")))
on_a_host = ray.get(located.remote(), timeout=60)
pod = {"env_vars": {"HERD_MACHINE": "node-7"}}
in_a_pod = ray.get(located.options(runtime_env=pod).remote(), timeout=60)
places = [[each.machine, each.domains] for each in (on_a_host, in_a_pod)]
print(json.dumps([machine.cores, machine.free_bytes, missing, places]))
ray.shutdown()
"""


def test_a_nodes_machine_is_found_while_its_replica_runs_and_so_is_where_a_process_of_rays_is():
    with tempfile.TemporaryDirectory(prefix="herd-", dir="/tmp") as folder:  # short: there will be sockets in it
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, folder],
            env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
            | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"},
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    cores, free_bytes, missing, places = json.loads(done.stdout.splitlines()[-1])
    assert (cores, free_bytes) == (read_machine().cores, whole_bytes())
    assert "expected a node that offers the resource herd_experts within 0.5 s" in missing
    # A replica's machine is its host, or what its pod was told; its domains are those of its Ray node.
    assert places == [[socket.gethostname(), ["", "a"]], ["node-7", ["", "a"]]]
