"""Values that cannot work are refused before anything is made, and the message names the key."""

import pytest
from ray.scripts.scripts import start

from tests.chart.chart import CHART, helm, template


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["image.tag=latest"], ["/image/tag"]),
        (["image.tga=1"], ["/image", "tga"]),
        (["image.pullPolicy=Sometimes"], ["/image/pullPolicy"]),
        (["settings.router.slot=3"], ["/settings/router", "slot"]),
        (["settings.ruoter.slots=3"], ["/settings", "ruoter"]),
        (["settings.router.slots=many"], ["/settings/router/slots"]),
        (["weights.source=disk"], ["/weights/source"]),
        (["weights.source=pvc"], ["weights.claim: expected"]),
        (["weights.source=image"], ["weights.image: expected"]),
        (["weights.source=csi"], ["weights.csi: expected a driver"]),
        (["weights.csi.volumeAttributes.bucketName=models"], ["/weights/csi", "driver"]),
        (["image.digest=sha256:12"], ["/image/digest"]),
        (["pods.env[0].name=HOME", "pods.env[0].value=/root"], ["pods.env: expected names", "HOME"]),
        (["pods.env[0].name=REDIS_PASSWORD", "pods.env[0].value=x"], ["pods.env: expected names", "REDIS_PASSWORD"]),
        (["pods.env[0].name=PROXY"], ["/pods/env/0"]),
        (["pods.labels.app\\.kubernetes\\.io/name=other"], ["/pods/labels/app.kubernetes.io"]),
        (
            ["workers.experts.spreadCopiesOverNodes=true"],
            ["workers.experts.spreadCopiesOverNodes: expected gpuKind or"],
        ),
        (
            ["settings.tls.cert=/a", "settings.tls.client_ca=/b", "serviceMonitor.enabled=true"],
            ["operatorKey.tlsSecret: expected a Secret"],
        ),
        (
            ["settings.auth.keys_file=/a", "serviceMonitor.enabled=true"],
            ["operatorKey.secret: expected a Secret"],
        ),
        (["prometheusRule.enabled=true"], ["serviceMonitor.enabled: expected true with prometheusRule.enabled"]),
        (["serviceMonitor.intervalSeconds=61"], ["/serviceMonitor/intervalSeconds"]),
        (["weights.mountPath=/tmp/models"], ["/weights/mountPath"]),
        (["weights.mountPath=/models/../tmp"], ["/weights/mountPath"]),
        (["weights.mountPath=/models/"], ["/weights/mountPath"]),
        (["secrets[0].name=a", "secrets[0].mountPath=//tmp"], ["/secrets/0/mountPath"]),
        (
            ["secrets[0].name=a", "secrets[0].mountPath=/etc"],
            ["secrets[0].mountPath: expected a folder apart", "/etc/herd of the chart"],
        ),
        (
            ["secrets[0].name=a", "secrets[0].mountPath=/x", "secrets[1].name=b", "secrets[1].mountPath=/x"],
            ["secrets[1].mountPath: expected a folder apart", "found /x beside /x of secrets[0].mountPath"],
        ),
        (
            ["weights.source=pvc", "weights.claim=x", "secrets[0].name=a", "secrets[0].mountPath=/models/keys"],
            ["secrets[0].mountPath: expected a folder apart", "/models of weights.mountPath"],
        ),
        (["workers.routers.gpus=0.5"], ["/workers/routers/gpus"]),
        (["workers.frontDoors.gpus=1"], ["/workers/frontDoors/gpus"]),
        (["workers.routers.replicas=-1"], ["/workers/routers/replicas"]),
        (["workers.routers.cpu=two"], ["/workers/routers/cpu"]),
        (["workers.routers.gpuKind=h100"], ["workers.routers.gpuKind: expected none without gpus"]),
        (["workers.routers.gpus=1", "workers.routers.gpuKind=h1"], ["workers.routers.gpuKind: expected one of", "h1"]),
        (["workers.routers.gpus=1", "settings.router.device=cpu"], ["workers.routers.gpus: expected 0"]),
        (["settings.router.device=cuda"], ["workers.routers.gpus: expected 1"]),
        (
            ["workers.routers.replicas=1", "settings.router.replicas=2"],
            ["workers.routers.replicas: expected at least 2"],
        ),
        (["workers.experts.replicas=1"], ["workers.experts.replicas: expected at least 2"]),
        (
            ["workers.experts.replicas=5", "workers.experts.spreadCopiesOverNodes=true"],
            ["workers.experts.replicas: expected a multiple of 2", "found 5"],
        ),
        (["workers.routers.maxReplicas=3"], ["workers.routers.maxReplicas: expected none without autoscaling.enabled"]),
        (
            ["autoscaling.enabled=true", "workers.routers.replicas=3", "workers.routers.maxReplicas=2"],
            ["workers.routers.maxReplicas: expected at least replicas, 3, found 2"],
        ),
        (
            ["autoscaling.enabled=true", "workers.routers.maxReplicas=2", "settings.scaling.router_max_replicas=4"],
            ["workers.routers.maxReplicas: expected at least 4"],
        ),
        (["drain.seconds=22"], ["drain.seconds: expected at least 23", "settings.limits.drain_s is 10"]),
        (["settings.limits.drain_s=60", "drain.seconds=60"], ["drain.seconds: expected at least 73"]),
        (["settings.limits.lame_duck_s=5"], ["settings.limits.lame_duck_s: expected at least 6", "readiness probes"]),
        (["upgrade.strategy=Rolling"], ["/upgrade/strategy"]),
        (["redis.address=redis"], ["/redis/address"]),
        (["settings.http.host=127.0.0.1"], ["settings.http.host: expected an address that other pods reach"]),
        (["settings.http.port=9000"], ["settings.http.port, settings.grpc.port: expected two ports"]),
        (["settings.http.port=8080"], ["settings.http.port: expected a port that Ray leaves free", "found 8080"]),
        (["settings.grpc.port=52365"], ["settings.grpc.port: expected a port that Ray leaves free", "found 52365"]),
        (["settings.context.shards=2"], ["settings.context.kv_bytes: expected bytes"]),
        (["settings.context.shards=2", "workers.routers.gpus=1"], ["settings.context.shards: expected none"]),
        (["networkPolicy.operators="], ["/networkPolicy/operators"]),
        (["networkPolicy.operators[0].pods=web"], ["/networkPolicy/operators/0", "pods"]),
        (["networkPolicy.clients[0].pods=web"], ["/networkPolicy/clients/0", "pods"]),
    ],
)
def test_wrong_values_are_refused_by_name(assignments, words):
    done = template(*(argument for each in assignments for argument in ("--set", each)))
    assert done.returncode != 0
    assert all(word in done.stderr for word in words), done.stderr


def test_ports_are_refused_that_rays_processes_in_a_pod_may_take():
    options = {each.name: each.default for each in start.params}
    for port in (options["min_worker_port"], options["max_worker_port"]):
        done = template("--set", f"settings.grpc.port={port}")
        assert (
            f"settings.grpc.port: expected a port that Ray leaves free in a front door's pod, found {port}"
            in done.stderr
        )
    assert template("--set", f"settings.grpc.port={options['max_worker_port'] + 1}").returncode == 0


def test_folders_that_only_begin_alike_are_apart():
    mounts = (
        "secrets[0].name=a",
        "secrets[0].mountPath=/etc/keys",
        "secrets[1].name=b",
        "secrets[1].mountPath=/etc/keys2",
    )
    assert template(*(argument for each in mounts for argument in ("--set", each))).returncode == 0


def test_a_cluster_that_mounts_no_images_is_refused_where_weights_are_one():
    image = ("--set", "weights.source=image", "--set", "weights.image=registry/scout:1")
    done = template(*image, "--kube-version", "1.32.9")
    assert "weights.source: expected Kubernetes 1.35" in done.stderr
    assert "v1.32.9" in done.stderr
    assert template(*image, "--kube-version", "1.33.0-gke.1").returncode == 0
    assert template("--kube-version", "1.32.9").returncode == 0


@pytest.mark.parametrize("name", ["a" * 41, "2herd"])
def test_a_release_name_that_kuberay_would_refuse_is_refused(name):
    done = template(name=name)
    assert "release name: expected" in done.stderr


def test_a_cluster_without_kuberay_is_refused_unless_told_not_to_look():
    done = helm("template", "herd", str(CHART))
    assert "preflight.requireCRDs: expected KubeRay's resources" in done.stderr
    assert helm("template", "herd", str(CHART), "--set", "preflight.requireCRDs=false").returncode == 0
