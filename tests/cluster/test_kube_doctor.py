from __future__ import annotations

import pytest
from kubernetes import client

from cluster.doctor import Verdict
from cluster.kube_doctor import drain_finding, examine_kubernetes, gpu_nodes_finding, kuberay_finding, volumes_finding
from tests.kube.api_server import FakeApiServer
from tests.kube.objects import NAMESPACE, claim, node, operator, pod, ray_services_crd


def examine(server: FakeApiServer) -> dict[str, tuple[Verdict, str]]:
    with client.ApiClient(client.Configuration(host=server.url, retries=False)) as api:
        return {each.subject: (each.verdict, each.text) for each in examine_kubernetes(api, NAMESPACE)}


def test_a_cluster_that_has_everything_is_well():
    with FakeApiServer() as server:
        server.put("customresourcedefinitions", ray_services_crd())
        server.put("deployments", operator("v1.7.0"))
        server.put("nodes", node("n1", labels={"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}, gpus=8))
        server.put("persistentvolumeclaims", claim("weights", "Bound"))
        server.put("pods", pod("a", "n1", "10.0.0.1"))
        found = examine(server)
    assert {verdict for verdict, _ in found.values()} == {Verdict.OK}, found
    assert "8 x NVIDIA-H100-80GB-HBM3" in found["GPU nodes"][1]


def test_an_empty_cluster_is_told_what_to_install():
    with FakeApiServer() as server:
        found = examine(server)
    assert found["RayService"][0] is Verdict.FAIL
    assert found["KubeRay"][0] is Verdict.FAIL
    assert "install" in found["KubeRay"][1]
    assert found["GPU nodes"][0] is Verdict.WARN


def test_missing_rights_are_named_with_what_is_lost_and_keep_nothing_else_from_being_looked_at():
    with FakeApiServer() as server:
        server.put("customresourcedefinitions", ray_services_crd())
        server.forbid("nodes", "deployments")
        found = examine(server)
    verdict, text = found["right: nodes"]
    assert verdict is Verdict.WARN
    assert "list" in text
    assert "only when their pods are told to end" in text
    assert found["GPU nodes"][0] is found["KubeRay"][0] is Verdict.WARN
    assert found["RayService"][0] is found["right: pods"][0] is Verdict.OK


def test_a_server_out_of_reach_is_the_only_finding():
    server = FakeApiServer()
    with server:
        pass
    ((verdict, text),) = examine(server).values()
    assert verdict is Verdict.FAIL
    assert "out of reach" in text


@pytest.mark.parametrize(
    ("tag", "verdict"),
    [("v1.7.0", Verdict.OK), ("1.10.2", Verdict.OK), ("v1.6.1", Verdict.FAIL), ("nightly", Verdict.WARN)],
)
def test_the_operator_has_to_be_new_enough(tag, verdict):
    assert kuberay_finding([operator(tag)]).verdict is verdict


def test_an_operator_that_is_not_ready_is_named():
    finding = kuberay_finding([operator("v1.7.0", ready=0)])
    assert finding.verdict is Verdict.FAIL
    assert "kubectl -n kuberay describe deployment kuberay-operator" in finding.text


def test_gpus_without_a_label_of_their_kind_are_named():
    finding = gpu_nodes_finding([node("n1", gpus=8), node("n2")])
    assert finding.verdict is Verdict.WARN
    assert "gpu-feature-discovery" in finding.text
    assert "n1" in finding.text


def test_a_few_of_thousands_of_nodes_are_named():
    finding = gpu_nodes_finding([node(f"n{number}", gpus=8) for number in range(2000)])
    assert "16000 x of unknown kind" in finding.text
    assert "n4 and 1995 more" in finding.text


def test_a_claim_that_waits_is_named():
    finding = volumes_finding([claim("weights", "Pending"), claim("cache", "Bound")])
    assert finding.verdict is Verdict.WARN
    assert "weights (Pending)" in finding.text
    assert "cache" not in finding.text


def test_pods_whose_grace_is_too_short_are_named():
    short = pod("a", "n1", "10.0.0.1")
    short["spec"]["terminationGracePeriodSeconds"] = 30
    finding = drain_finding([short])
    assert finding.verdict is Verdict.WARN
    assert "pod a: terminationGracePeriodSeconds" in finding.text
    assert drain_finding([pod("a", "n1", "10.0.0.1")]).verdict is Verdict.OK
