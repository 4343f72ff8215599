"""`herd status --kube`: what Kubernetes says of Herd."""

from __future__ import annotations

from collections.abc import Collection

from rich.console import Console
from rich.table import Table

from cluster.cli.status import make_console
from cluster.disruption import KubeObject
from cluster.kube_status import pod_infos, service_info
from cluster.kubernetes import FORBIDDEN, ask, ask_items, connect, own_namespace, status_of
from protos.errors import NoReplica, ReplicaUnavailable

_STYLES = {"running": "green", "pending": "yellow", "not ready": "yellow", "ending": "magenta"}


def show_kubernetes(namespace: str | None) -> None:
    """Print the RayServices of a namespace and their pods.

    Args:
        namespace: None: this pod's, or that of kubectl's context.

    Raises:
        BadConfig: it is not known where a cluster is.
        ReplicaUnavailable: the API server does not answer, or refuses.
        NoReplica: there is no RayService.
    """
    from kubernetes import client

    namespace = namespace or own_namespace()
    console = make_console()
    with connect() as api:
        core, custom = client.CoreV1Api(api), client.CustomObjectsApi(api)
        found = _services(custom, namespace)
        if not found:
            raise NoReplica(
                f"expected a RayService in namespace {namespace}, found none; name another with --namespace, or "
                "install the chart"
            )
        selector = "ray.io/is-ray-node=yes"
        pods = list(ask_items(core.list_namespaced_pod, namespace=namespace, label_selector=selector))
        nodes = _nodes(core, {each["spec"].get("nodeName") for each in pods}, console)
    services = [service_info(each) for each in found]
    for service in services:
        console.print(f"RayService {service.name}, namespace {namespace}", style="bold")
        for line in (*service.conditions, *service.applications):
            console.print(f"  {line}", markup=False)
        if not service.conditions:
            console.print("  nothing was said of it yet: does KubeRay's operator run? `herd doctor --kube` looks")
    clusters = {name for service in services for name in service.clusters}
    _print_pods(console, [each for each in pods if each["metadata"]["labels"].get("ray.io/cluster") in clusters], nodes)


def _services(custom: object, namespace: str) -> list[KubeObject]:
    list_ = custom.list_namespaced_custom_object  # type: ignore[attr-defined]
    try:
        items: list[KubeObject] = ask(list_, group="ray.io", version="v1", namespace=namespace, plural="rayservices")[
            "items"
        ]
    except ReplicaUnavailable as error:
        if status_of(error) == 404:
            return []
        raise
    return items


def _nodes(core: object, names: Collection[str | None], console: Console) -> list[KubeObject]:
    """Return the nodes of these names, as far as they may be read."""
    try:
        found = ask_items(core.list_node)  # type: ignore[attr-defined]
        return [each for each in found if each["metadata"]["name"] in names]
    except ReplicaUnavailable as error:
        if status_of(error) not in FORBIDDEN:
            raise
        console.print("nodes may not be read: which of them are about to go is not shown", style="dim")
        return []


def _print_pods(console: Console, pods: list[KubeObject], nodes: list[KubeObject]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("pod", "group", "state", "node", "why"):
        table.add_column(heading, overflow="fold")
    for each in pod_infos(pods, nodes):
        state = f"[{_STYLES.get(each.state, 'red')}]{each.state}[/]"
        table.add_row(each.name, each.group, state, each.node or "-", each.why)
    console.print(table if pods else "no pods")
