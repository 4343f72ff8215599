"""The command-line options of a bare process that encrypts: `experts.tls_*` of one that belongs to a cluster."""

from __future__ import annotations

import argparse
from pathlib import Path

from protos.channel import PEER_NAME
from protos.errors import BadConfig
from protos.tls import Identity, TlsFiles


def add_tls_options(parser: argparse.ArgumentParser) -> None:
    """Add --tls-ca, --tls-cert and --tls-key."""
    group = parser.add_argument_group(
        "encryption",
        "Over TCP, this process and whoever connects to it show each other certificates of one private authority, for "
        f"the DNS name {PEER_NAME}; a Unix socket stays plain. Files are PEM, all three or none, read again when they "
        "change. Processes of a cluster have the settings experts.tls_* instead: docs/security.md.",
    )
    group.add_argument("--tls-ca", type=Path, metavar="FILE", help="authorities whose certificates are believed (none)")
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help="this process's certificate (none)")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="its key, without a password (none)")


def tls_identity(options: argparse.Namespace) -> Identity | None:
    """Return what the options say this process shows and believes; None: no encryption.

    Raises:
        BadConfig: some are missing, or the files are unusable.
    """
    files = {"--tls-ca": options.tls_ca, "--tls-cert": options.tls_cert, "--tls-key": options.tls_key}
    missing = [name for name, file in files.items() if file is None]
    if len(missing) == len(files):
        return None
    if missing:
        raise BadConfig(
            f"{', '.join(files)}: expected all or none, found no {' and no '.join(missing)}: add it, or leave out the "
            "others"
        )
    return Identity(TlsFiles(cert=options.tls_cert, key=options.tls_key, ca=options.tls_ca))
