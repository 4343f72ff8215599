"""The command `herd`. Each subcommand imports what it needs when it runs, so that --help and generate are quick."""

from __future__ import annotations

from cluster.cli.app import main

__all__ = ["main"]
