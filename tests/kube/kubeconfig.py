"""A kubeconfig for the fake API server."""

from __future__ import annotations

from pathlib import Path

from tests.kube.objects import NAMESPACE


def write_kubeconfig(folder: Path, url: str, ca: Path | None = None) -> Path:
    """Write a kubeconfig that names a server, and who signed its certificate; return its path."""
    path = folder / "kubeconfig"
    authority = "" if ca is None else f", certificate-authority: '{ca}'"
    path.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n"
        f"clusters: [{{name: k, cluster: {{server: '{url}'{authority}}}}}]\n"
        "users: [{name: u, user: {token: t}}]\n"
        f"contexts: [{{name: c, context: {{cluster: k, user: u, namespace: {NAMESPACE}}}}}]\n"
    )
    return path
