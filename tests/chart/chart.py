"""The chart as tests see it: what it renders, and what is left of that for people to compare."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.chart.programs import find_program
from tests.conftest import ROOT

CHART = ROOT / "helm"
GOLDENS = Path(__file__).parent / "goldens"
SCHEMA = CHART / "values.schema.json"
PLANNED = {
    "scout-1xh100-int4": "scout --gpus h100 --quantize int4 --context 256k --concurrency 1",
    "scout-8xh100": "scout --gpus 8xh100 --context 128k",
    "maverick-8xh200-fp8": "maverick --gpus 8xh200 --quantize fp8 --context 128k",
    "maverick-2x8-multinode": "maverick --gpus 2x8xh200 --quantize fp8 --context 128k --copies 2",
}
"""What `herd plan` is asked for each profile that it makes."""
PROFILES = ("demo-cpu", *PLANNED)
_NOTES = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: notes}
data:
  notes: {{ include "herd/templates/NOTES.txt" . | toJson }}
"""
Object = dict[str, Any]


def profile(name: str) -> Path:
    return CHART / "ci" / f"{name}.yaml"


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm."""
    return subprocess.run(
        [find_program("helm") or "helm", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def template(*arguments: str, name: str = "herd", chart: Path = CHART) -> subprocess.CompletedProcess[str]:
    """Render a release for a cluster with KubeRay, new enough for everything."""
    cluster = ("--api-versions", "ray.io/v1", "--kube-version", "1.35.0")
    return helm("template", name, str(chart), "--namespace", "llama", *cluster, *arguments)


def render(*arguments: str) -> list[Object]:
    """Return all objects of a release."""
    done = template(*arguments)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def notes(*arguments: str) -> str:
    """Return what helm prints after an installation; `--is-upgrade`: after an upgrade.

    `helm template` leaves it out, and all else wants a cluster, so a copy of the chart has it in a ConfigMap.
    """
    with tempfile.TemporaryDirectory() as folder:
        copied = shutil.copytree(CHART, Path(folder) / "herd")
        (copied / "templates" / "notes.yaml").write_text(_NOTES)
        done = template(*arguments, "--show-only", "templates/notes.yaml", chart=copied)
    assert done.returncode == 0, done.stderr
    return str(yaml.safe_load(done.stdout)["data"]["notes"])


def only(objects: list[Object], kind: str, name: str = "herd") -> Object:
    [found] = [each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def groups(objects: list[Object]) -> dict[str, Object]:
    """Return the groups of workers by name."""
    cluster = only(objects, "RayService")["spec"]["rayClusterConfig"]
    return {each["groupName"]: each for each in cluster["workerGroupSpecs"]}


def essence(objects: list[Object]) -> str:
    """Return what is particular to a profile, as YAML: the golden file."""
    pods = {}
    for name, group in groups(objects).items():
        spec = group["template"]["spec"]
        pods[name] = {
            "replicas": [group["minReplicas"], group["replicas"], group["maxReplicas"]],
            "resource": group["resources"],
            "limits": spec["containers"][0]["resources"]["limits"],
            "grace": spec["terminationGracePeriodSeconds"],
            "mounts": [each["mountPath"] for each in spec["containers"][0]["volumeMounts"]],
        }
        if "affinity" in spec:
            terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            pods[name]["gpus"] = terms["nodeSelectorTerms"][0]["matchExpressions"][0]["values"]
        if "topologySpreadConstraints" in spec:
            pods[name]["spread over"] = spec["topologySpreadConstraints"][0]["topologyKey"]
    return yaml.safe_dump(
        {
            "objects": [f"{each['kind']} {each['metadata']['name']}" for each in objects],
            "serveConfigV2": yaml.safe_load(only(objects, "RayService")["spec"]["serveConfigV2"]),
            "herd.yaml": yaml.safe_load(only(objects, "ConfigMap")["data"]["herd.yaml"]),
            "workers": pods,
        },
        sort_keys=False,
    )
