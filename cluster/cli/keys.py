"""`herd keys`: API keys for the file that `auth.keys_file` names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.failure import explained

keys = typer.Typer(name="keys", help="Make API keys.", no_args_is_help=True)


@keys.callback()
def _group() -> None:
    """Make API keys."""


@keys.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    file: Annotated[Path, typer.Option(metavar="FILE", help="Where to add its hash; made if there is none.")] = Path(
        "keys.yaml"
    ),
    admin: Annotated[
        bool, typer.Option("--admin", help="For an operator: may see metrics and the status page too.")
    ] = False,
    requests_per_minute: Annotated[int | None, typer.Option(help="Most requests a minute.", min=1)] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(help="Most tokens a minute, prompts and answers.", min=1)
    ] = None,
    streams: Annotated[int | None, typer.Option(help="Most sequences at once.", min=1)] = None,
    best_priority: Annotated[int, typer.Option(help="Lowest priority to ask for: lower numbers go first.")] = 0,
    even_share: Annotated[
        bool, typer.Option("--even-share", help="Take turns with itself while other keys' requests run.")
    ] = False,
) -> None:
    """Make a key, print it once and add its hash to a file.

    The key goes to standard output and is kept nowhere. A running Herd whose auth.keys_file this is takes it at once.

    \b
    herd keys new alice --tokens-per-minute 100000
    herd keys new prometheus --admin --file /etc/herd/keys.yaml
    """  # noqa: D301  click takes \b for: leave these lines as they are
    from cluster.auth.key_file import KeyEntry, add_key, key_hash, new_key

    with explained():
        key = new_key()
        entry = KeyEntry(
            name=name,
            sha256=key_hash(key),
            admin=admin,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            streams=streams,
            best_priority=best_priority,
            even_share=even_share,
        )
        add_key(file, entry)
    typer.echo(key)
    typer.echo(f"added {name} to {file}; the key is shown this once", err=True)
