"""Who reaches which pods, what pods may ask Kubernetes, and what selectors select: names that nobody else compares."""

import importlib.util

import pytest
import yaml

from cluster.kube_doctor import _RIGHTS
from tests.chart.chart import groups, only, render
from tests.docs.reader import parse


@pytest.fixture(scope="module")
def objects():
    """Everything that the chart makes, for two routers and clients of a gateway."""
    client = "networkPolicy.clients[0].podSelector.matchLabels.app=gateway"
    return render(f"--set=serviceMonitor.enabled=true,settings.router.replicas=2,{client}")


def pods_of(objects):
    """Return what a pod of each group is made of, the head's too."""
    head = only(objects, "RayService")["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
    return {"head": head} | {name: group["template"] for name, group in groups(objects).items()}


def selected(labels, found):
    """Return the names of those that have all labels."""
    return {name for name, each in found.items() if labels.items() <= each["metadata"]["labels"].items()}


def test_clients_reach_the_ports_of_front_doors_the_operator_the_dashboard_and_others_nothing(objects):
    pods = pods_of(objects)
    operator = {"app.kubernetes.io/name": "kuberay-operator"}
    reached = set()
    for policy in (each["spec"] for each in objects if each["kind"] == "NetworkPolicy"):
        for rule in policy["ingress"]:
            [source] = rule["from"]
            labels = source["podSelector"]["matchLabels"]
            name = {"gateway": "clients"}.get(labels.get("app"), "operator" if labels == operator else "")
            sources = {name} if name else selected(labels, pods)
            ports = [each["port"] for each in rule.get("ports", [{"port": "all"}])]
            targets = selected(policy["podSelector"]["matchLabels"], pods)
            reached |= {(each, target, port) for each in sources for target in targets for port in ports}
    among = {(each, other, "all") for each in pods for other in pods}
    ports = {each["name"] for each in pods["front-door"]["spec"]["containers"][0]["ports"]}
    from_outside = {("clients", "front-door", port) for port in ports} | {("operator", "head", 8265)}
    assert (ports, reached) == ({"http", "grpc"}, among | from_outside)


def test_budgets_and_the_service_monitor_select_what_they_are_named_for(objects):
    pods = pods_of(objects)
    budgets = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "PodDisruptionBudget"}
    found = {name: selected(spec["selector"]["matchLabels"], pods) for name, spec in budgets.items()}
    assert found == {"herd-router": {"router"}, "herd-experts": {"experts"}}
    services = {each["metadata"]["name"]: each for each in objects if each["kind"] == "Service"}
    monitor = only(objects, "ServiceMonitor")["spec"]
    assert selected(monitor["selector"]["matchLabels"], services) == {"herd-http"}
    [port] = services["herd-http"]["spec"]["ports"]
    [endpoint] = monitor["endpoints"]
    assert (endpoint["port"], endpoint["path"], port["targetPort"]) == (port["name"], "/metrics", "http")


def test_roles_give_the_rights_that_doctor_looks_for_and_no_others(objects):
    assert {(group, resource, verb) for group, resource, verbs, _ in _RIGHTS for verb in verbs} == {
        (group, resource, verb)
        for role in objects
        if role["kind"] in ("Role", "ClusterRole")
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_application_reads_the_settings_where_they_are_mounted(objects):
    [application] = yaml.safe_load(only(objects, "RayService")["spec"]["serveConfigV2"])["applications"]
    folder, _, file = application["args"]["config"].rpartition("/")
    config = only(objects, "ConfigMap")
    for pod in pods_of(objects).values():
        mounts = {each["mountPath"]: each["name"] for each in pod["spec"]["containers"][0]["volumeMounts"]}
        assert {"name": mounts[folder], "configMap": {"name": config["metadata"]["name"]}} in pod["spec"]["volumes"]
    assert file in config["data"]


def test_what_helm_test_runs_is_a_command_and_goes_to_a_service_of_front_doors(objects):
    program, *arguments = only(objects, "Pod", "herd-test")["spec"]["containers"][0]["command"]
    assert program == "herd"
    service = only(objects, "Service", "herd-grpc")
    host = f"{service['metadata']['name']}.llama.svc"
    assert parse(arguments).params["address"] == f"{host}:{service['spec']['ports'][0]['port']}"


def test_a_claim_secrets_and_preloading_are_those_that_values_name():
    values = ["weights.source=pvc", "weights.claim=scout", "secrets[0].name=keys", "secrets[0].mountPath=/etc/keys"]
    values += ["settings.experts.warm_spares=1", "redis.address=redis:6379", "redis.passwordSecret=redis"]
    objects = render(*(f"--set={each}" for each in values))
    redis = only(objects, "RayService")["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert redis["redisPassword"]["valueFrom"]["secretKeyRef"] == {"name": "redis", "key": "password"}
    pods = pods_of(objects)
    for name, pod in pods.items():
        volumes = {each["name"]: each for each in pod["spec"]["volumes"]}
        mounts = {each["mountPath"]: volumes[each["name"]] for each in pod["spec"]["containers"][0]["volumeMounts"]}
        assert mounts["/etc/keys"]["secret"]["secretName"] == "keys"
        assert mounts["/models"]["persistentVolumeClaim"] == {"claimName": "scout", "readOnly": True}
        assert mounts["/dev/shm"]["emptyDir"] == {"medium": "Memory"}
        environment = {each["name"]: each for each in pod["spec"]["containers"][0]["env"]}
        assert environment["HERD_MACHINE"]["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"
        preloaded = environment.get("RAY_preload_python_modules", {}).get("value")
        assert preloaded == ("cluster.preload" if name == "experts" else None)
    assert importlib.util.find_spec("cluster.preload") is not None
