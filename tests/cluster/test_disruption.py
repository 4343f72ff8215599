from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cluster.disruption import foretold_ends, node_ends, pod_ends
from tests.kube.objects import deletion, node, pod


@pytest.mark.parametrize(
    "taint",
    [
        "ToBeDeletedByClusterAutoscaler=1700000000",
        "karpenter.sh/disrupted",
        "karpenter.sh/disruption=disrupting",
        "node.kubernetes.io/unschedulable",
        "cloud.google.com/impending-node-termination",
        "aws-node-termination-handler/spot-itn",
    ],
)
def test_a_taint_that_foretells_an_end_names_node_and_taint(taint):
    why = node_ends(node("n1", "nvidia.com/gpu=present", taint))
    assert "n1" in why
    assert taint.partition("=")[0] in why


@pytest.mark.parametrize(
    "taint",
    [
        "DeletionCandidateOfClusterAutoscaler=1700000000",
        "cloud.google.com/gke-spot=true",
        "kubernetes.azure.com/scalesetpriority=spot",
        "node.kubernetes.io/not-ready",
        "nvidia.com/gpu=present",
    ],
)
def test_a_taint_that_may_pass_or_always_was_there_foretells_nothing(taint):
    assert node_ends(node("n1", taint)) == ""


def test_a_cordoned_node_is_about_to_go():
    cordoned = node("n1") | {"spec": {"unschedulable": True}}
    assert "cordoned" in node_ends(cordoned)


def test_a_pod_that_is_deleted_or_to_be_evicted_is_about_to_go():
    assert "deleted" in pod_ends(pod("a", "n1", "10.0.0.1", deleted=True))
    assert "EvictionByEvictionAPI" in pod_ends(pod("a", "n1", "10.0.0.1", disruption="EvictionByEvictionAPI"))
    assert pod_ends(pod("a", "n1", "10.0.0.1")) == ""


def test_pods_end_with_their_nodes_and_the_others_stay():
    pods = [
        pod("a", "n1", "10.0.0.1"),
        pod("b", "n2", "10.0.0.2"),
        pod("c", "n2", "10.0.0.3", deleted=True),
        pod("pending", None, None, deleted=True),
        pod("unknown-node", "n3", "10.0.0.4"),
    ]
    ends = foretold_ends(pods, [node("n1", "karpenter.sh/disrupted"), node("n2")])
    assert sorted(ends) == ["10.0.0.1", "10.0.0.3"]


def test_a_pod_that_was_told_to_end_says_when_and_when_it_is_killed():
    told_at = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)
    told = pod("a", "n1", "10.0.0.1")
    told["metadata"] |= deletion(38, told_at)
    foretold = pod("b", "n2", "10.0.0.2")
    ends = foretold_ends([told, foretold], [node("n2", "karpenter.sh/disrupted")])
    told_at_s = told_at.timestamp()
    assert (ends["10.0.0.1"].told_at_s, ends["10.0.0.1"].killed_at_s) == (told_at_s, told_at_s + 38)
    assert (ends["10.0.0.2"].told_at_s, ends["10.0.0.2"].killed_at_s) == (None, None)


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_the_address_of_a_pod_that_has_ended_may_be_anothers(phase):
    evicted = pod("a", "n1", "10.0.0.1", disruption="EvictionByEvictionAPI")
    evicted["status"]["phase"] = phase
    assert foretold_ends([evicted], [node("n1", "karpenter.sh/disrupted")]) == {}
