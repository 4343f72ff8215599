"""A kubeconfig for the fake API server."""

from __future__ import annotations

from pathlib import Path

from tests.kube.objects import NAMESPACE


def write_kubeconfig(folder: Path, url: str) -> Path:
    """Write a kubeconfig that names a server; return its path."""
    path = folder / "kubeconfig"
    path.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n"
        f"clusters: [{{name: k, cluster: {{server: '{url}'}}}}]\n"
        "users: [{name: u, user: {token: t}}]\n"
        f"contexts: [{{name: c, context: {{cluster: k, user: u, namespace: {NAMESPACE}}}}}]\n"
    )
    return path
