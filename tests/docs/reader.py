"""A reader who types a page's commands one after the other, with what can be had without a cluster or a network.

herd is the real command line, helm and kubectl are the real programs: helm renders the chart instead of installing it,
kubectl talks to a stand-in of an API server that has what was installed. What is not named here cannot be typed.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import typer

from benchmarks.chaos.application import HERD
from cluster.cli.app import app
from cluster.config_source import load_config
from cluster.openai.app import build_app
from cluster.planner.read_question import read_config
from cluster.served_model import load_served_model
from cluster.service import InferenceService
from models.presets import DEMO, DEMO_FOLDER
from tests.chart.chart import Object, groups, only, render
from tests.chart.programs import find_program
from tests.cluster.scripted_router import ScriptedRouter, says
from tests.conftest import ROOT
from tests.docs.pages import Command
from tests.kube.api_server import FakeApiServer
from tests.kube.kubeconfig import write_kubeconfig
from tests.kube.objects import NAMESPACE

NEEDS_NETWORK = {
    "repo add kuberay https://ray-project.github.io/kuberay-helm/": "KubeRay's charts are at its own address",
    "install kuberay-operator kuberay/kuberay-operator --version 1.7.0": "and so is its operator",
}
"""What helm is told that no test can do, and why."""
GIVEN_FILES = ("ca.pem", "door.pem", "door.key", "peer.pem", "peer.key", "peers-ca.pem")
"""What a reader has already where a page says so."""
_CLUSTER = "herd-abcde"
_REFUSAL = "herd: "
"""How what Herd prints begins when it refuses."""
_SUBSTITUTION = re.compile(r'"?\$\((.*)\)"?')
_CLI = typer.main.get_command(app)


class Reader:
    """Types commands in a folder.

    Args:
        folder: empty; also the current one.
        api: a stand-in of a cluster, without anything in it.
    """

    def __init__(self, folder: Path, api: FakeApiServer) -> None:
        self._folder, self._api = folder, api
        self._kubeconfig = write_kubeconfig(folder, api.url)
        self._releases: dict[tuple[str, str], tuple[list[str], list[Object]]] = {}
        self._built: set[str] = set()
        for name in GIVEN_FILES:
            (folder / name).touch()
        (folder / "helm").symlink_to(ROOT / "helm")

    def type(self, command: Command) -> str:
        """Run a command, and return what it prints.

        Raises:
            AssertionError: it fails, prints something else than the page shows, or nothing here knows how to run it.
        """
        return self._run(command.text, command.shown)

    def _run(self, text: str, shown: str = "") -> str:
        text = text.replace("\\\n", " ")
        text = _SUBSTITUTION.sub(lambda found: shlex.quote(self._run(found[1]).strip()), text)
        words = shlex.split(text, comments=True)
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words[-1] == "&":
            words.pop()
        target = words.pop() if words[-2:-1] == [">"] else None
        if target:
            words.pop()
        program, *arguments = words
        known = {
            "herd": lambda: self._herd(arguments, shown),
            "helm": lambda: self._helm(arguments),
            "kubectl": lambda: self._kubectl(arguments),
            "curl": lambda: self._curl(arguments),
            "docker": lambda: self._docker(arguments),
            "make": lambda: self._make(arguments),
            "pip": lambda: self._pip(arguments),
            "python": lambda: self._python(arguments),
        }
        name = Path(program).name
        assert name in known, f"no rule says how to test {name}; write one, or correct the page"
        printed = known[name]()
        if target and name != "python":
            (self._folder / target).write_text(printed)
        return printed

    def _herd(self, arguments: list[str], shown: str) -> str:
        given = parse(arguments).params
        if arguments[0] in ("keys", "plan"):
            done = self._process(HERD, *arguments)
            assert (done.returncode != 0) is shown.startswith(_REFUSAL), done.stdout + done.stderr
            _compare(done.stdout + done.stderr, shown)
            return done.stdout
        assert not shown.startswith(_REFUSAL), f"no rule says how to test what herd {arguments[0]} refuses"
        if arguments[0] == "serve":
            named = {"model.path": given["model"], "model.quantize": given["quantize"]}
            more = [f"{name}={value}" for name, value in named.items() if value is not None]
            load_config(given["config"], [*(given["assign"] or ()), *more])
        return ""  # the others need a Herd: tests/e2e asks one

    def _helm(self, arguments: list[str]) -> str:
        if " ".join(arguments) in NEEDS_NETWORK:
            return ""
        action, name, *rest = arguments
        namespace = rest[rest.index("-n") + 1] if "-n" in rest else NAMESPACE
        release = (namespace, name)
        if action == "install":
            assert release not in self._releases, f"{name} is installed already"
        else:
            assert release in self._releases, f"{name} is not installed in {namespace}"
        if action in ("install", "upgrade"):
            chart, *rest = rest
            assert chart == "./helm"
            before, _ = self._releases.get(release, ([], []))
            kept = {each for each in before if each.endswith(".yaml")}
            assert kept <= set(rest), f"it forgets {kept - set(rest)} of the installation"
            objects = render(*rest)
            self._check_secrets(objects, namespace)
            self._has_installed(objects, namespace, is_new=action == "install")
            self._releases[release] = rest, objects
            return ""
        assert action in ("test", "uninstall"), f"no rule says how to test helm {action}"
        if action == "test":
            hooks = [each["metadata"].get("annotations", {}) for each in self._releases[release][1]]
            assert "test" in [each.get("helm.sh/hook") for each in hooks]
        else:
            del self._releases[release]
        return ""

    def _check_secrets(self, objects: list[Object], namespace: str) -> None:
        """Hold the files that settings name below a Secret's mount, and the operator's key, to Secrets there are."""
        settings = only(objects, "ConfigMap")["data"]["herd.yaml"]
        wanted = set()
        for group in groups(objects).values():
            pod = group["template"]["spec"]
            names = {each["name"]: each["secret"]["secretName"] for each in pod["volumes"] if "secret" in each}
            for mount in pod["containers"][0]["volumeMounts"]:
                if name := names.get(mount["name"]):
                    wanted |= {(name, file) for file in re.findall(rf"{mount['mountPath']}/(\S+)", settings)}
        for pod in (each["spec"] for each in objects if each["kind"] == "Pod"):
            sources = [each.get("valueFrom", {}) for each in pod["containers"][0]["env"]]
            wanted |= {(each["secretKeyRef"]["name"], each["secretKeyRef"]["key"]) for each in sources if each}
        for name, file in wanted:
            found = self._api.get("secrets", name, namespace)
            assert found is not None, f"there is no Secret {name}"
            assert file in found["data"], f"the Secret {name} has no {file}"

    def _has_installed(self, objects: list[Object], namespace: str, *, is_new: bool) -> None:
        """Put into the cluster what a release makes, and what KubeRay makes of it."""
        service = only(objects, "RayService")
        for plural, kind in (("rayservices", "RayService"), ("rayclusters", "RayCluster")):
            names = {"names": {"plural": plural, "kind": kind}}
            self._api.put("customresourcedefinitions", {"metadata": {"name": f"{plural}.ray.io"}, "spec": names})
        status = {
            "conditions": [{"type": "Ready", "status": "True", "reason": "NonZeroServeEndpoints", "message": ""}],
            "activeServiceStatus": {"rayClusterName": _CLUSTER},
        }
        self._put("rayservices", {**service, "status": status}, namespace)
        for each in objects:
            if each["kind"] == "Service":
                self._put("services", each, namespace)
        if not is_new:
            return  # KubeRay leaves what runs as it is
        cluster = service["spec"]["rayClusterConfig"]
        meta = {"name": _CLUSTER, "finalizers": ["ray.io/gcs"]}
        self._put("rayclusters", {"metadata": meta, "spec": cluster}, namespace)
        templates = {name: group["template"] for name, group in groups(objects).items()}
        for name, template in ({"head": cluster["headGroupSpec"]["template"]} | templates).items():
            ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
            meta = {"name": f"{_CLUSTER}-{name}", "labels": template["metadata"]["labels"]}
            self._put("pods", {"metadata": meta, "spec": template["spec"], "status": ready}, namespace)

    def _put(self, kind: str, found: Object, namespace: str) -> None:
        self._api.put(kind, {**found, "metadata": {**found["metadata"], "namespace": namespace}})

    def _kubectl(self, arguments: list[str]) -> str:
        if arguments[:2] == ["create", "secret"]:
            made = self._real_kubectl(*arguments, "--dry-run=client", "-o", "json")
            self._put("secrets", json.loads(made), NAMESPACE)
            return made
        known = ("describe", "get", "logs", "patch", "port-forward", "wait")
        [action] = [each for each in arguments[:3] if each in known]
        if action == "patch":
            return self._patch(arguments)
        if action in ("logs", "port-forward"):
            # The stand-in has no streams: that kubectl asks for the right one is as far as it goes.
            self._real_kubectl(*arguments, fails=True)
            assert re.search(r"/pods/[^/]+/(log\?container=ray|portforward$)", self._api.requests[-1])
            return ""
        return self._real_kubectl(*arguments)

    def _patch(self, arguments: list[str]) -> str:
        """Patch what the cluster has, as kubectl does where it has the object in a file."""
        start = arguments.index("patch") + 1
        kind, name, *rest = arguments[start:]
        found = json.loads(self._real_kubectl(*arguments[: start - 1], "get", kind, name, "-o", "json"))
        file = self._folder / "object.json"
        file.write_text(json.dumps(found))
        patched = json.loads(self._real_kubectl("patch", "--local", "-f", str(file), *rest, "-o", "json"))
        assert patched != found, "it changes nothing"
        if patched["spec"] != found["spec"]:
            [service] = [
                only(objects, "RayService")
                for (namespace, _), (_, objects) in self._releases.items()
                if namespace == found["metadata"]["namespace"]
            ]
            assert _pods(patched["spec"]) == _pods(service["spec"]["rayClusterConfig"])
        self._api.put("rayclusters", patched)
        return ""

    def _real_kubectl(self, *arguments: str, fails: bool = False) -> str:
        done = self._process(find_program("kubectl") or "kubectl", *arguments)
        assert (done.returncode != 0) is fails, done.stderr
        return done.stdout

    def _process(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "KUBECONFIG": str(self._kubeconfig), "HOME": str(self._folder), "COLUMNS": "100"}
        return subprocess.run(
            command, env=environment, cwd=self._folder, capture_output=True, text=True, timeout=60, check=False
        )

    def _curl(self, arguments: list[str]) -> str:
        [url] = [each for each in arguments if "://" in each or each.startswith("localhost")]
        found = re.fullmatch(r"(?:https?://)?(?:localhost|\w+-http\.\w+\.svc):8000(/v1/.*)", url)
        assert found is not None, f"{url}: no rule says what answers there"
        schema = openapi_page()["paths"][found[1]]["post"]["requestBody"]["content"]["application/json"]["schema"]
        body = json.loads(arguments[arguments.index("-d") + 1])
        jsonschema.validate(body, schema)
        assert body.keys() <= schema["properties"].keys(), "a front door ignores fields that it does not know"
        return ""  # tests/e2e asks a Herd

    def _docker(self, arguments: list[str]) -> str:
        action, *rest = arguments
        if action == "push":
            assert rest[0] in self._built, f"{rest[0]} was not built"
            return ""
        *options, context = rest
        assert (action, context) == ("build", "."), f"no rule says how to test docker {action}"
        taken = re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        for option, value in zip(options[::2], options[1::2], strict=True):
            assert option in ("--tag", "--build-arg"), f"no rule says how to test docker build {option}"
            assert option == "--tag" or value.partition("=")[0] in taken, f"the Dockerfile takes no {value}"
        self._built.add(options[options.index("--tag") + 1])
        return ""

    def _make(self, arguments: list[str]) -> str:
        done = subprocess.run(
            ["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _pip(self, arguments: list[str]) -> str:
        action, wanted = arguments
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert action == "install"
        assert wanted in {f"{project['name']}[{extra}]" for extra in project["optional-dependencies"]}
        return ""

    def _python(self, arguments: list[str]) -> str:
        """Look for a module or file, and for its options: many of them run for minutes."""
        name, *rest = arguments[1:] if arguments[0] == "-m" else arguments
        file = ROOT / name
        if arguments[0] == "-m":
            found = importlib.util.find_spec(name)
            assert found is not None, f"there is no module {name}"
            file = Path(found.origin or "")
        package = file.parent if file.name == "__init__.py" else file.with_suffix("")
        sources = "".join(each.read_text() for each in (file, *package.glob("*.py")))
        options = {each.partition("=")[0] for each in rest if each.startswith("--")} - {"--help"}
        missing = [each for each in options if f'"{each}"' not in sources]
        if missing:  # options that several programs share are elsewhere; to ask a program takes seconds
            said = self._process(sys.executable, *arguments[: arguments.index(name) + 1], "--help").stdout
            missing = [each for each in missing if each not in said]
        assert not missing, f"{name} has no option {', '.join(missing)}"
        return ""


def _pods(cluster: Object) -> dict[str, tuple[int, ...]]:
    """Return how many pods of each group there may be, and, where Ray does not decide that, how many there are."""
    keys = ["minReplicas", "maxReplicas", *([] if cluster["enableInTreeAutoscaling"] else ["replicas"])]
    return {each["groupName"]: tuple(each[key] for key in keys) for each in cluster["workerGroupSpecs"]}


def _compare(printed: str, shown: str) -> None:
    """Hold what a command printed to what a page shows below it: nothing, all of it, or its beginning and `...`."""
    found = "\n".join(line.rstrip() for line in printed.splitlines())
    beginning = shown.rstrip().removesuffix("...")
    is_whole = beginning == shown.rstrip() != ""
    assert found == beginning if is_whole else found.startswith(beginning.rstrip()), found


@functools.cache
def openapi_page() -> Object:
    """Return what a front door of the demo model says of itself."""
    config = read_config(DEMO)
    limits = {"context_length": config.max_positions, "dtype": "float32", "fingerprint": ""}
    model = load_served_model(DEMO_FOLDER, config, name=DEMO, **limits)
    return build_app(InferenceService(model, ScriptedRouter(says()))).openapi()


def parse(arguments: list[str]) -> Any:
    """Return what a subcommand of herd makes of its arguments.

    Raises:
        ClickException: there is no such subcommand, or it does not take this.
    """
    name, *rest = arguments
    return _CLI.commands[name].make_context(name, rest)  # type: ignore[attr-defined]


def options_of(arguments: list[str]) -> set[str]:
    """Return the options that a subcommand of herd has."""
    command: Any = _CLI
    for word in arguments:
        if not hasattr(command, "commands"):
            break
        command = command.commands[word]
    return {option for parameter in command.params for option in parameter.opts} | {"--help"}
