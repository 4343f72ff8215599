"""The command line's shape: subcommands, their options and their help."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.bench import bench
from cluster.cli.failure import explained
from cluster.cli.keys import keys
from cluster.cli.plan import plan
from cluster.cli.server_address import DEFAULT_ADDRESS

app = typer.Typer(
    name="herd",
    help="""Serve Llama 4 mixture-of-experts models with their experts in processes of their own.

    \b
    herd serve                                    the demo model, on this machine
    herd generate "What does str.join do?"        ask it, from a second terminal
    herd status                                   see what runs where
    herd bench                                    put load on it, and measure
    herd plan scout --gpus 8xh100                 what fits on other machines, and how fast
    """,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Namespace = Annotated[
    str | None, typer.Option(metavar="NAME", help="With --kube: where Herd is. Default: this pod's, or kubectl's.")
]
Address = Annotated[str, typer.Option("--address", "-a", metavar="HOST:PORT", help="gRPC address of a running Herd.")]


@app.command()
def serve(
    model: Annotated[
        str | None,
        typer.Argument(help="Folder of a model (Hugging Face or Meta layout), or `demo`.", show_default="demo"),
    ] = None,
    http_port: Annotated[
        int | None, typer.Option(help="Port of the OpenAI API.", show_default="8000", min=1, max=65535)
    ] = None,
    grpc_port: Annotated[
        int | None, typer.Option(help="Port of the gRPC API.", show_default="9000", min=1, max=65535)
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="int8|int4|fp8",
            help="Round weights when they are loaded: less memory, faster on a CPU; fp8 needs a Hopper GPU.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings in YAML or JSON; see docs/settings.md.")
    ] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SECTION.KEY=VALUE", help="One setting; can be given many times, wins over FILE."
        ),
    ] = None,
) -> None:
    """Serve a model on this machine until Ctrl-C.

    Prints one line that begins `herd is ready`, with both addresses, once the model answers.

    \b
    herd serve
    herd serve ~/models/Llama-4-Scout-17B-16E-Instruct --set router.dtype=bfloat16
    herd serve --quantize int8
    herd serve --http-port 8080 --set experts.groups=4 --set experts.replicas_per_group=2
    """  # noqa: D301  click takes \b for: leave these lines as they are
    from rich.console import Console

    from cluster.config_source import load_config
    from cluster.launch.server import Server

    assignments = list(assign or [])
    given = {"model.path": model, "http.port": http_port, "grpc.port": grpc_port, "model.quantize": quantize}
    for name, value in given.items():
        if value is not None:
            assignments.append(f"{name}={value}")
    with explained():
        settings = load_config(config, assignments)
        code = Server(settings, Console(highlight=False, soft_wrap=True)).run()
        # Ray's exit handlers would wait for processes that are gone.
        sys.stdout.flush()
        os._exit(code)


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to say; `-` reads it from standard input.")] = None,
    address: Address = DEFAULT_ADDRESS,
    system: Annotated[str | None, typer.Option(help="System message, before the prompt.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it stands instead of answering it.")] = False,
    token_ids: Annotated[
        str | None, typer.Option(metavar="1,2,3", help="Continue token ids; all a model without tokenizer takes.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens to generate; default: what the context leaves.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 picks the likeliest token; default: the model's.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Choose among the k likeliest tokens; 0: among all.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Choose among tokens that make up this probability.")] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Leave out tokens less likely than this part of the likeliest.")
    ] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1 avoids tokens that were there.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answer.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer; can be given many times.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on past the model's own end.")] = False,
) -> None:
    """Stream an answer from a running Herd.

    The answer goes to standard output, counts go to standard error.

    \b
    herd generate "What does str.join do?"
    herd generate --raw "def fibonacci(n):" --max-tokens 64 --temperature 0
    herd generate --token-ids 1,2,3 --max-tokens 8 --address gpu-box:9000
    """  # noqa: D301  as above
    from cluster.cli.generate import Options, stream_answer

    with explained():
        options = Options(
            prompt=prompt,
            system=system,
            raw=raw,
            token_ids=token_ids,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=tuple(stop or ()),
            ignore_eos=ignore_eos,
        )
        stream_answer(options, address)


@app.command()
def status(
    address: Address = DEFAULT_ADDRESS,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it anew each second, until Ctrl-C.")] = False,
    by_layer: Annotated[bool, typer.Option("--by-layer", help="Show the load by layer, not by replica.")] = False,
    kube: Annotated[
        bool, typer.Option("--kube", help="Show what Kubernetes says: RayServices, pods, and why one does not run.")
    ] = False,
    namespace: Namespace = None,
) -> None:
    """Show what a running Herd serves, and where.

    Which replicas start, serve, drain or have failed, how busy the routers are, which replica holds which experts, how
    busy each expert is, and what happened lately.

    \b
    herd status
    herd status --watch
    herd status --by-layer
    herd status --address gpu-box:9000 | less
    herd status --kube --namespace ai
    """  # noqa: D301  as above
    from cluster.cli.kube import show_kubernetes
    from cluster.cli.status import show_status, watch_status

    with explained():
        if kube:
            show_kubernetes(namespace)
            return
        (watch_status if watch else show_status)(address, by_layer=by_layer)


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="Model whose memory to check.")] = "demo",
    http_port: Annotated[int, typer.Option(help="Port that `herd serve` will use.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="Port that `herd serve` will use.")] = 9000,
    kube: Annotated[bool, typer.Option("--kube", help="Check a Kubernetes cluster instead.")] = False,
    namespace: Namespace = None,
) -> None:
    """Check this machine: versions, imports, memory, ports. Exits with 1 when something keeps Herd from starting.

    With --kube, check the cluster that $KUBECONFIG names: CRDs, KubeRay, GPUs, volumes, rights, drain times.
    """
    from cluster.cli.doctor import print_findings
    from cluster.doctor import examine

    if kube:
        from cluster.kube_doctor import examine_kubernetes
        from cluster.kubernetes import connect, own_namespace

        with explained(), connect() as api:
            findings = examine_kubernetes(api, namespace or own_namespace())
        raise typer.Exit(print_findings(findings))
    raise typer.Exit(print_findings(examine(model, http_port, grpc_port)))


app.command()(bench)
app.command()(plan)
app.add_typer(keys)
