"""What the chart renders, held against Kubernetes' schemas, KubeRay's fields, Herd's own loader, and golden files."""

import difflib
import hashlib
import importlib.util
import json
import os
import re
import warnings
from pathlib import Path

import jsonschema
import pytest
import yaml

from cluster import roles
from cluster.cli import server_address
from cluster.config_source import load_config
from cluster.drain_times import drain_times
from cluster.launch.ray_session import _environment
from cluster.limits import FrontDoorLimits
from cluster.names import experts_deployment
from tests.chart import write
from tests.chart.chart import (
    CHART,
    GOLDENS,
    PLANNED,
    PROFILES,
    SCHEMA,
    essence,
    groups,
    helm,
    notes,
    only,
    profile,
    render,
    template,
)
from tests.cluster.promql import problems
from tests.conftest import ROOT

RAYSERVICE = jsonschema.Draft202012Validator(json.loads((Path(__file__).parent / "rayservice.schema.json").read_text()))
EVERYTHING = """\
settings:
  router: {replicas: 2}
  long: {from_tokens: 5000}
  context: {shards: 2, max_shards: 3, kv_bytes: 1000000}
  scaling: {router_min_replicas: 0, router_max_replicas: 6, experts_max_replicas: 2, front_door_max_replicas: 3}
  limits: {drain_s: 20.5}
  http: {port: 9080}
image: {pullSecrets: [registry], digest: "sha256:DIGEST"}
secrets: [{name: certificates, mountPath: /etc/certificates}]
weights: {source: image, image: "registry/scout:1"}
pods:
  annotations: {gke-gcsfuse/volumes: "true"}
  labels: {team: search}
  env:
    - {name: HTTPS_PROXY, value: "http://proxy:3128"}
    - {name: TOKEN, valueFrom: {secretKeyRef: {name: token, key: key}}}
  priorityClass: serving
  gpuRuntimeClass: nvidia
  accountAnnotations: {cloud: role}
workers:
  routers: {nodeSelector: {pool: big}, tolerations: [{key: gpu, operator: Exists}]}
  experts: {gpus: 1, spreadCopiesOverNodes: true, nodeSelector: {pool: big}}
autoscaling: {enabled: true}
drain: {seconds: 60}
redis: {address: "redis:6379", passwordSecret: redis}
service: {type: LoadBalancer, annotations: {cloud: internal}}
networkPolicy: {clients: [{podSelector: {matchLabels: {app: gateway}}}]}
operatorKey: {secret: operator}
serviceMonitor: {enabled: true, labels: {release: prometheus}}
prometheusRule: {enabled: true, firstTokenSeconds: 2.5, labels: {release: prometheus}}
""".replace("DIGEST", "0" * 64)


@pytest.fixture(scope="module")
def rendered():
    """Everything that each profile makes."""
    return {name: render("--values", str(profile(name))) for name in PROFILES}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Render the chart with all that is off by default."""
    values = tmp_path_factory.mktemp("values") / "values.yaml"
    values.write_text(EVERYTHING)
    return render("--values", str(values))


def environment(pod):
    return {each["name"]: each.get("value") for each in pod["spec"]["containers"][0]["env"]}


def test_the_chart_and_its_profiles_lint():
    done = helm("lint", "--strict", str(CHART), *(f"--values={profile(name)}" for name in PROFILES[-1:]))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_renders_what_its_golden_shows(rendered, name):
    found, golden = essence(rendered[name]), (GOLDENS / f"{name}.yaml").read_text()
    changes = "".join(difflib.unified_diff(golden.splitlines(True), found.splitlines(True)))
    assert not changes, f"python -m tests.chart.write would change\n{changes}"


@pytest.mark.parametrize("name", PROFILES)
def test_the_rayservice_of_a_profile_has_the_fields_that_kuberay_knows(rendered, name):
    assert [error.message for error in RAYSERVICE.iter_errors(only(rendered[name], "RayService"))] == []


def test_the_rayservice_with_everything_has_the_fields_that_kuberay_knows(everything):
    assert [error.message for error in RAYSERVICE.iter_errors(only(everything, "RayService"))] == []


def test_kubernetes_knows_every_object_of_its_own(rendered, everything):
    if importlib.util.find_spec("kubernetes_validate") is None:
        if os.environ.get("CI"):
            pytest.fail("kubernetes-validate is not installed: pip install -e '.[dev]'")
        pytest.skip("kubernetes-validate is not installed: pip install -e '.[dev]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import kubernetes_validate
    foreign = set()
    for each in [*rendered["maverick-2x8-multinode"], *everything]:
        if each["apiVersion"].startswith(("ray.io/", "monitoring.coreos.com/")):
            foreign.add(each["kind"])
            pods = groups([each]).values() if each["kind"] == "RayService" else ()
            known = [{"apiVersion": "v1", "kind": "Pod", **group["template"]} for group in pods]
        else:
            known = [each]
        for one in known:
            kubernetes_validate.validate(one, "1.33", strict=True)
    assert foreign == {"RayService", "ServiceMonitor", "PrometheusRule"}


@pytest.mark.parametrize("name", PROFILES)
def test_the_settings_in_the_configmap_are_read_as_herd_serve_reads_them(rendered, name, tmp_path):
    file = tmp_path / "herd.yaml"
    file.write_text(only(rendered[name], "ConfigMap")["data"]["herd.yaml"])
    found = load_config(file)
    if name == "demo-cpu":
        assert found == load_config()
    else:
        assert found.model.path == f"/models/{name.split('-')[0]}"
    application = yaml.safe_load(only(rendered[name], "RayService")["spec"]["serveConfigV2"])["applications"][0]
    assert application["args"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", PLANNED)
def test_a_profile_is_what_the_planner_prints_today(name):
    assert profile(name).read_text() == write.planned_text(name), "python -m tests.chart.write"


def test_the_table_of_values_is_made_of_their_comments():
    assert write.README.read_text() == write.readme_text(), "python -m tests.chart.write"
    shown = re.findall(r"^\| `([^`]+)` \|", write.table_text(), re.MULTILINE)

    def leaves(values, path=()):
        for key, value in values.items():
            here = ".".join([*path, key])
            if here in shown and (not isinstance(value, dict) or here != "workers"):
                yield here
            elif isinstance(value, dict) and value:
                yield from leaves(value, (*path, key))
            else:
                yield f"{here} has no comment"

    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert [each for each in leaves(values) if each not in shown] == []


def test_the_schema_knows_every_setting_there_is():
    assert SCHEMA.read_text() == write.schema_text(), "python -m tests.chart.write"


def ends(objects):
    """Return the drain and the grace of all pods of workers."""
    templates = [group["template"] for group in groups(objects).values()]
    drains = [float(environment(each)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) for each in templates]
    return set(zip(drains, (each["spec"]["terminationGracePeriodSeconds"] for each in templates), strict=True))


@pytest.mark.parametrize(
    "limits",
    [{}, {"drain_s": 0.5}, {"drain_s": 20.5}, {"drain_s": 300, "lame_duck_s": 7.25}, {"lame_duck_s": 30}],
    ids=lambda limits: ", ".join(f"{name}={value}" for name, value in limits.items()) or "defaults",
)
def test_pods_have_the_time_to_end_that_herd_derives_from_the_same_settings(limits):
    made = FrontDoorLimits(**limits)
    times = drain_times(made.drain_s, made.lame_duck_s)
    found = ends(render(*(f"--set-json=settings.limits.{name}={value}" for name, value in limits.items())))
    assert found == {(times.drain_s, times.grace_s)}


def test_pods_have_the_time_to_end_that_values_say(everything):
    assert ends(everything) == {(60.0, 75)}


def test_a_front_door_that_leaves_is_found_not_ready_before_it_closes_its_ports(rendered):
    pod = groups(rendered["demo-cpu"])["front-door"]["template"]["spec"]["containers"][0]
    noticed_s = pod["readinessProbe"]["periodSeconds"] * pod["readinessProbe"]["failureThreshold"]
    assert noticed_s < FrontDoorLimits().lame_duck_s


def test_processes_have_the_environment_that_herd_serve_gives_them(rendered):
    ours = _environment(Path("/tmp"))
    # KubeRay makes the token, and has a dashboard that shows calls.
    its_own = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "TMPDIR", "RAY_task_events_report_interval_ms"}
    pods = [group["template"] for group in groups(rendered["demo-cpu"]).values()]
    pods.append(only(rendered["demo-cpu"], "RayService")["spec"]["rayClusterConfig"]["headGroupSpec"]["template"])
    for pod in pods:
        found = environment(pod)
        assert {name: found.get(name) for name in ours.keys() - its_own} == {
            name: value for name, value in ours.items() if name not in its_own
        }


def test_each_group_offers_the_role_that_its_replicas_ask_for(everything):
    offered = {name: list(group["resources"]) for name, group in groups(everything).items()}
    assert offered == {
        "front-door": [roles.FRONT_DOOR_ROLE],
        "router": [roles.ROUTER_ROLE],
        "experts-0": [roles.EXPERTS_ROLE, roles.group_role(experts_deployment(0))],
        "experts-1": [roles.EXPERTS_ROLE, roles.group_role(experts_deployment(1))],
        "context-shard": [roles.CONTEXT_ROLE],
    }


def test_copies_of_an_expert_spread_over_nodes_as_pods_of_a_group_of_their_own():
    spread = "workers.experts.spreadCopiesOverNodes=true,workers.experts.nodeSelector.pool=big"
    objects = render(f"--set={spread}", "--set=settings.experts.replicas_per_group=3")
    found = groups(objects)
    assert list(found) == ["front-door", "router", "experts-0", "experts-1"]
    for number, name in enumerate(("experts-0", "experts-1")):
        group = found[name]
        asked = {roles.EXPERTS_ROLE: "1", roles.group_role(experts_deployment(number)): "1"}
        assert (group["resources"], group["replicas"]) == (asked, 3)
        [constraint] = group["template"]["spec"]["topologySpreadConstraints"]
        assert constraint["labelSelector"]["matchLabels"]["ray.io/group"] == name
        assert (constraint["maxSkew"], constraint["topologyKey"]) == (1, "kubernetes.io/hostname")
        assert constraint["whenUnsatisfiable"] == "DoNotSchedule"
        # One budget for all of them, and the network policy's, select by this.
        assert group["template"]["metadata"]["labels"]["app.kubernetes.io/component"] == "experts"
    assert [each["metadata"]["name"] for each in objects if each["kind"] == "PodDisruptionBudget"] == ["herd-experts"]


def test_pods_scale_as_far_as_replicas_do_and_one_further_for_a_node_that_is_left(everything):
    found = {
        name: (group["minReplicas"], group["replicas"], group["maxReplicas"])
        for name, group in groups(everything).items()
    }
    # Routers: none, 2 or 6 of them, and one more for long requests.
    experts = {"experts-0": (1, 1, 3), "experts-1": (1, 1, 3)}
    assert found == {"front-door": (1, 1, 4), "router": (1, 3, 8), **experts, "context-shard": (2, 2, 4)}


def test_experts_that_may_go_to_zero_can_begin_there():
    scaled = ("--set=autoscaling.enabled=true", "--set=settings.scaling.experts_min_replicas=0")
    group = groups(render(*scaled, "--set=workers.experts.replicas=0"))["experts"]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (0, 0, 3)


def test_without_autoscaling_there_is_a_pod_for_every_replica_there_may_be():
    objects = render("--set", "settings.scaling.router_max_replicas=4", "--set", "settings.router.replicas=2")
    group = groups(objects)["router"]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (4, 4, 4)


def test_experts_in_the_router_have_no_pods_and_neither_have_those_of_a_dense_model():
    assert "experts" not in groups(render("--set", "settings.experts.in_router=true"))
    assert "experts" not in groups(render("--set", "workers.experts.replicas=0"))


def test_front_doors_alone_are_asked_whether_herd_answers(rendered):
    probes = {
        name: group["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"]
        for name, group in groups(rendered["demo-cpu"]).items()
    }
    assert probes == {
        "front-door": "/health",
        "router": "/api/local_raylet_healthz",
        "experts": "/api/local_raylet_healthz",
    }


@pytest.mark.parametrize(
    ("tls", "probe"),
    [
        ({"cert": "/etc/certificates/tls.crt"}, {"httpGet": {"path": "/health", "port": "http", "scheme": "HTTPS"}}),
        ({"cert": "/etc/certificates/tls.crt", "client_ca": "/etc/ca.crt"}, {"tcpSocket": {"port": "http"}}),
    ],
)
def test_front_doors_that_encrypt_are_asked_as_they_answer(tls, probe):
    assignments = [f"--set=settings.tls.{key}={value}" for key, value in tls.items()]
    pod = groups(render(*assignments))["front-door"]["template"]["spec"]["containers"][0]
    assert probe.items() <= pod["readinessProbe"].items()


def test_prometheus_and_the_test_pod_show_the_operators_key(everything, rendered):
    endpoint = only(everything, "ServiceMonitor")["spec"]["endpoints"][0]
    assert endpoint["authorization"] == {"credentials": {"name": "operator", "key": "key"}}

    def named(objects):
        return {each["name"] for each in only(objects, "Pod", "herd-test")["spec"]["containers"][0]["env"]}

    assert named(everything) - named(rendered["demo-cpu"]) == {"HERD_API_KEY"}


def test_alerts_ask_for_metrics_of_this_release_that_front_doors_export(everything):
    [group] = only(everything, "PrometheusRule")["spec"]["groups"]
    rules = {each["alert"]: each for each in group["rules"]}
    assert set(rules) == {
        "HerdNoReadyRouter",
        "HerdExpertWithoutHolder",
        "HerdExpertLoadsLong",
        "HerdRequestsFail",
        "HerdFirstTokenSlow",
        "HerdDrainStuck",
    }
    scraped = only(everything, "Service", "herd-http")["metadata"]["name"]
    for rule in rules.values():
        assert problems(rule["expr"]) == []
        matchers = re.findall(r"\{(.*?)\}", rule["expr"])
        assert matchers
        assert all(each.startswith(f'job="{scraped}",namespace="llama"') for each in matchers)
        assert rule["annotations"]["summary"].endswith(".")
        assert "llama" in rule["annotations"]["description"]
    assert rules["HerdFirstTokenSlow"]["expr"].endswith("> 2.5")
    minutes = {
        name: rules[name]["for"] for name in ("HerdExpertWithoutHolder", "HerdExpertLoadsLong", "HerdDrainStuck")
    }
    assert list(minutes.values()) == ["1m", "30m", "60m"]


def test_services_lead_to_the_ports_of_front_doors(everything):
    for kind, port in (("http", 9080), ("grpc", 9000)):
        service = only(everything, "Service", f"herd-{kind}")["spec"]
        pod = groups(everything)["front-door"]["template"]
        assert service["selector"].items() <= pod["metadata"]["labels"].items()
        assert service["ports"][0]["port"] == port
        assert {"name": kind, "containerPort": port} in pod["spec"]["containers"][0]["ports"]


def test_a_budget_counts_pods_that_there_always_are_and_a_single_one_has_none(rendered, everything):
    def budgets(objects):
        specs = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "PodDisruptionBudget"}
        # With maxUnavailable Kubernetes asks the pods' owner for its scale, which a RayCluster has not: nobody may go.
        assert not any("maxUnavailable" in spec for spec in specs.values())
        return {name: spec["minAvailable"] for name, spec in specs.items()}

    assert budgets(rendered["demo-cpu"]) == {"herd-experts": 1}
    assert budgets(rendered["maverick-2x8-multinode"]) == {"herd-front-door": 1, "herd-router": 9, "herd-experts": 5}
    assert budgets(everything) == {"herd-experts": 1, "herd-context-shard": 1}


def test_every_container_meets_the_standard_restricted(everything):
    """What a namespace may demand of all containers (Pod Security Standards), those of KubeRay among them."""
    cluster = only(everything, "RayService")["spec"]["rayClusterConfig"]
    pods = [group["template"]["spec"] for group in groups(everything).values()]
    pods += [cluster["headGroupSpec"]["template"]["spec"], only(everything, "Pod", "herd-test")["spec"]]
    containers = [each for pod in pods for each in pod["containers"]]
    # KubeRay copies what waits for the head from its pod's container, and makes the autoscaler of these options.
    containers.append(cluster["autoscalerOptions"])
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        allowed = {"configMap", "csi", "emptyDir", "image", "persistentVolumeClaim", "secret"}
        assert {kind for volume in pod["volumes"] for kind in volume.keys() - {"name"}} <= allowed
    for container in containers:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["readOnlyRootFilesystem"] is True
        assert "/tmp" in [each["mountPath"] for each in container["volumeMounts"]]


def test_all_pods_have_what_is_said_of_pods(everything):
    head = only(everything, "RayService")["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
    workers = {name: group["template"] for name, group in groups(everything).items()}
    for pod in (head, *workers.values()):
        assert pod["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
        assert pod["metadata"]["labels"]["team"] == "search"
        assert pod["spec"]["priorityClassName"] == "serving"
        assert environment(pod)["HTTPS_PROXY"] == "http://proxy:3128"
        assert pod["spec"]["containers"][0]["image"] == f"herd:0.1.0@sha256:{'0' * 64}"
    with_runtime = [name for name, pod in workers.items() if "runtimeClassName" in pod["spec"]]
    assert (with_runtime, "runtimeClassName" in head["spec"]) == (["experts-0", "experts-1"], False)
    assert only(everything, "ServiceAccount", "herd-head")["metadata"]["annotations"] == {"cloud": "role"}


def test_expert_pods_are_spread_over_nodes_that_take_them_and_front_doors_where_they_can_be(everything):
    made = {
        name: group["template"]["spec"].get("topologySpreadConstraints") for name, group in groups(everything).items()
    }
    assert {name: spread and spread[0]["whenUnsatisfiable"] for name, spread in made.items()} == {
        "front-door": "ScheduleAnyway",
        "router": None,
        "experts-0": "DoNotSchedule",
        "experts-1": "DoNotSchedule",
        "context-shard": None,
    }
    # A drained node, and pods of the cluster before, must not keep a new pod waiting.
    assert made["experts-0"][0].items() >= {"nodeTaintsPolicy": "Honor", "matchLabelKeys": ["ray.io/cluster"]}.items()


def test_a_bucket_is_mounted_by_its_driver_read_only():
    values = ["weights.source=csi", "weights.csi.driver=gcsfuse.csi.storage.gke.io"]
    values.append("weights.csi.volumeAttributes.bucketName=models")
    spec = groups(render(*(f"--set={each}" for each in values)))["router"]["template"]["spec"]
    [volume] = [each for each in spec["volumes"] if each["name"] == "weights"]
    attributes = {"bucketName": "models"}
    assert volume["csi"] == {
        "driver": "gcsfuse.csi.storage.gke.io",
        "readOnly": True,
        "volumeAttributes": attributes,
    }


def test_pages_on_disk_are_asked_of_the_node_of_a_router_alone():
    pods = groups(render("--set", "settings.router.disk_kv_bytes=53505256960"))
    asked = {
        name: group["template"]["spec"]["containers"][0]["resources"]["requests"].get("ephemeral-storage")
        for name, group in pods.items()
    }
    assert asked == {"front-door": None, "router": str(53505256960 + 2 * 1024**3), "experts": None}


def test_prometheus_and_the_test_pod_believe_and_show_the_operators_certificates():
    values = ["tls.cert=/etc/tls/tls.crt", "tls.client_ca=/etc/tls/ca.crt"]
    objects = render(
        *(f"--set=settings.{each}" for each in values),
        "--set=operatorKey.tlsSecret=operator,serviceMonitor.enabled=true",
    )
    assert only(objects, "ServiceMonitor")["spec"]["endpoints"][0]["tlsConfig"] == {
        "serverName": "herd-http.llama.svc",
        "ca": {"secret": {"name": "operator", "key": "ca.crt"}},
        "cert": {"secret": {"name": "operator", "key": "tls.crt"}},
        "keySecret": {"name": "operator", "key": "tls.key"},
    }
    pod = only(objects, "Pod", "herd-test")["spec"]
    container = pod["containers"][0]
    folder = container["volumeMounts"][1]["mountPath"]
    assert "https://herd-grpc.llama.svc:9000" in container["command"]
    assert environment({"spec": pod}) == {
        "HOME": "/tmp",
        server_address.CA: f"{folder}/ca.crt",
        server_address.CERT: f"{folder}/tls.crt",
        server_address.KEY: f"{folder}/tls.key",
    }


def test_without_a_certificate_that_front_doors_ask_for_there_is_no_test_that_could_only_fail():
    objects = render("--set=settings.tls.cert=/etc/tls/tls.crt,settings.tls.client_ca=/etc/tls/ca.crt")
    assert [each for each in objects if each["kind"] == "Pod"] == []


def test_without_a_key_that_front_doors_ask_for_there_is_no_test_that_could_only_fail():
    asks = "--set=settings.auth.keys_file=/etc/keys/keys.yaml"
    assert [each for each in render(asks) if each["kind"] == "Pod"] == []
    assert "helm test" not in notes(asks)
    assert only(render(asks, "--set=operatorKey.secret=operator"), "Pod", "herd-test")
    assert "helm test" in notes(asks, "--set=operatorKey.secret=operator")


def test_a_dashboard_needs_no_labels():
    labels = (
        only(render("--set=grafanaDashboard.enabled=true", *more), "ConfigMap", "herd-dashboard")["metadata"]["labels"]
        for more in ((), ("--set=grafanaDashboard.labels.grafana_dashboard=null",))
    )
    assert ["grafana_dashboard" in each for each in labels] == [True, False]


def test_services_say_what_is_spoken_at_their_ports(rendered, everything):
    def spoken(objects):
        services = (only(objects, "Service", f"herd-{kind}") for kind in ("http", "grpc"))
        return [each["spec"]["ports"][0]["appProtocol"] for each in services]

    assert spoken(rendered["demo-cpu"]) == ["http", "kubernetes.io/h2c"]
    assert spoken(render("--set=settings.tls.cert=/etc/tls/tls.crt")) == ["https", "https"]


def test_nobody_is_allowed_to_write(everything):
    verbs = {
        verb
        for each in everything
        if each["kind"] in ("Role", "ClusterRole")
        for rule in each["rules"]
        for verb in rule["verbs"]
    }
    assert verbs == {"get", "list", "watch"}


def test_kubernetes_answers_the_heads_pod_alone_where_the_directory_runs(everything):
    bindings = [each for each in everything if each["kind"].endswith("RoleBinding")]
    assert [each["kind"] for each in bindings] == ["ClusterRoleBinding", "RoleBinding"]
    for each in bindings:
        assert each["subjects"] == [{"kind": "ServiceAccount", "name": "herd-head", "namespace": "llama"}]
        assert only(everything, each["roleRef"]["kind"], each["roleRef"]["name"])
    head = only(everything, "RayService")["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    assert head["serviceAccountName"] == "herd-head"
    assert head.get("automountServiceAccountToken", True)
    for group in groups(everything).values():
        assert group["template"]["spec"]["serviceAccountName"] == "herd"
        assert group["template"]["spec"]["automountServiceAccountToken"] is False


def test_releases_of_two_namespaces_do_not_share_what_belongs_to_the_cluster():
    def of_the_cluster(name, namespace):
        objects = yaml.safe_load_all(template("--namespace", namespace, name=name).stdout)
        return {each["metadata"]["name"] for each in objects if each and each["kind"].startswith("ClusterRole")}

    assert len(of_the_cluster("herd", "team-a")) == 1
    assert of_the_cluster("a-herd", "team") != of_the_cluster("herd", "team-a")


def test_operators_are_those_that_values_say_and_none_of_the_defaults():
    [rule] = only(render(), "NetworkPolicy", "herd-operator")["spec"]["ingress"]
    operator = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}}
    assert rule["from"] == [{"namespaceSelector": {}, **operator}]
    objects = render('--set-json=networkPolicy.operators=[{"ipBlock": {"cidr": "10.0.0.0/8"}}]')
    [rule] = only(objects, "NetworkPolicy", "herd-operator")["spec"]["ingress"]
    assert rule["from"] == [{"ipBlock": {"cidr": "10.0.0.0/8"}}]


def test_the_version_of_ray_is_the_one_that_is_tested():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert f"ray=={values['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()
