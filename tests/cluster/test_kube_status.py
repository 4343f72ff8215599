from __future__ import annotations

import pytest

from cluster.cli.kube import show_kubernetes
from cluster.kube_status import pod_infos, service_info
from protos.errors import NoReplica
from tests.kube.kubeconfig import write_kubeconfig
from tests.kube.objects import NAMESPACE, node, pod, ray_service

pytest_plugins = ("tests.kube.fixtures",)


def why(found: dict, **status: object) -> str:
    """Return why a pod of that status does not run."""
    found["status"] |= status
    (info,) = pod_infos([found], [])
    return info.why


def unscheduled(message: str) -> dict:
    found = pod("a", None, None)
    found["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "message": message}]
    return found


def waiting(reason: str, message: str = "", ended: str = "") -> list[dict]:
    last = {"terminated": {"reason": ended}} if ended else {}
    return [{"state": {"waiting": {"reason": reason, "message": message}}, "lastState": last}]


def test_a_pod_that_finds_no_node_says_what_the_scheduler_says():
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    assert why(unscheduled(message)) == message


def test_a_pod_whose_image_does_not_come_says_so_with_advice():
    text = why(pod("a", "n1", None), containerStatuses=waiting("ImagePullBackOff", "not found"))
    assert text == "ImagePullBackOff: not found: see that the image exists, and its pull secret"


def test_a_pod_that_ran_out_of_memory_says_that_rather_than_that_it_waits():
    text = why(pod("a", "n1", None), containerStatuses=waiting("CrashLoopBackOff", "back-off 5m", "OOMKilled"))
    assert text.startswith("OOMKilled")
    assert "more memory" in text


def test_pods_that_do_not_run_come_first_and_those_that_end_say_why():
    pods = [pod("well", "n1", "10.0.0.1"), pod("going", "n2", "10.0.0.2"), unscheduled("no room")]
    infos = pod_infos(pods, [node("n1"), node("n2", "karpenter.sh/disrupted")])
    assert [(each.name, each.state) for each in infos] == [("a", "pending"), ("going", "ending"), ("well", "running")]
    assert "karpenter.sh/disrupted" in infos[1].why


def test_a_service_tells_its_conditions_its_clusters_and_its_applications():
    info = service_info(ray_service("herd", "herd-x1"))
    assert info.clusters == ("herd-x1",)
    assert info.conditions == ("Ready True: NonZeroServeEndpoints",)
    assert info.applications == ("herd: DEPLOYING: waits for replicas",)


def test_a_service_of_which_nothing_was_said_yet_is_told_too():
    assert service_info({"metadata": {"name": "herd"}}).conditions == ()


@pytest.fixture
def server(server, tmp_path, monkeypatch):
    """The API server that $KUBECONFIG names."""
    monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path, server.url)))
    return server


def test_the_command_shows_services_and_their_own_pods_only(server, capsys):
    server.put("rayservices", ray_service("herd"))
    server.put("pods", unscheduled("0/3 nodes are available"))
    other = pod("other", "n1", "10.0.0.9")
    other["metadata"]["labels"]["ray.io/cluster"] = "another"
    server.put("pods", other)
    server.forbid("nodes")
    show_kubernetes(None)
    shown = capsys.readouterr().out
    assert f"RayService herd, namespace {NAMESPACE}" in shown
    assert "0/3 nodes are available" in shown
    assert "nodes may not be read" in shown
    assert "other" not in shown


def test_the_command_says_that_there_is_no_service(server):
    with pytest.raises(NoReplica, match="expected a RayService in namespace elsewhere"):
        show_kubernetes("elsewhere")
