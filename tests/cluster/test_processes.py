import subprocess
import sys

SCRIPT = """
import subprocess, sys
from cluster.launch.processes import adopt_orphans, descendants, kill_descendants, VitalChildren
adopt_orphans()
# A shell that starts a process in a session of its own, and ends: an orphan.
subprocess.run(["sh", "-c", "setsid sleep 600 & setsid sleep 600 &"], check=True)
vital = subprocess.Popen(["sleep", "600"])
found = VitalChildren("sleep")
print(len(descendants()), found.dead())
left = kill_descendants()
print(left, found.dead(), descendants())
"""


def test_orphans_are_found_and_killed():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["3 []", "[] ['sleep'] []"]
