"""What pods of the drain benchmark run is what the chart renders, as KubeRay turns it into a command."""

from benchmarks.pods.rendered import HEAD, Probe, render_release
from tests.chart.chart import only, render


def test_rays_nodes_start_as_kuberay_starts_them():
    release = render_release(["settings.router.replicas=2"])
    found = {each.name: each for each in release.groups}
    assert list(found) == [HEAD, "front-door", "router", "experts"]
    assert found["router"].num_pods == 2
    assert found["router"].start == (
        "ulimit -n 65536; ray start --address={head}:6379 --block --dashboard-agent-listen-port=52365 "
        "--memory=4294967296 --metrics-export-port=8080 --num-cpus=2 --object-store-memory=104857600 "
        """--resources='{"herd_router": 1.0}'"""
    )
    assert found[HEAD].start.startswith("ulimit -n 65536; ray start --head --block")
    assert "--num-cpus=0" in found[HEAD].start


def test_pods_have_the_environment_grace_and_probe_that_are_rendered():
    found = {each.name: each for each in render_release([]).groups}
    assert found["router"].environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "23"
    assert found["router"].grace_s == 38
    assert found["router"].probe is None
    assert found["front-door"].probe == Probe(path="/health", period_s=2, timeout_s=5, num_failures=2)


def test_the_application_and_its_settings_are_those_that_are_rendered():
    release, objects = render_release(["settings.router.slots=3"]), render("--set", "settings.router.slots=3")
    assert release.settings == only(objects, "ConfigMap")["data"]["herd.yaml"]
    assert release.application["applications"][0]["args"]["by_role"]
    assert (release.http_port, release.grpc_port) == (8000, 9000)
