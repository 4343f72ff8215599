"""The command `herd`. Each subcommand imports what it needs when it runs, so that --help and generate are quick."""

from __future__ import annotations

import os
import sys

from cluster.imports import find_intruder


def main() -> None:
    """Run the command line, once it is sure that its own modules are those that will be imported."""
    if message := find_intruder():
        sys.exit(f"herd: {message}")
    # Before gRPC is imported: its core remarks on every server that goes away, in the middle of what a command prints.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from cluster.cli.app import app

    app()
