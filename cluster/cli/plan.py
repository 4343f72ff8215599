"""`herd plan`: its options. The arithmetic is in cluster/planner."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Annotated

import typer

from cluster.cli.failure import FAILED, end, explained
from protos.errors import BadConfig, NotEnoughMemory


def plan(
    model: Annotated[str, typer.Argument(help="`scout`, `maverick`, `demo`, or a model's folder.")],
    gpus: Annotated[
        str,
        typer.Option(
            "--gpus", "-g", metavar="[[NODESx]Nx]KIND", help="h100, 8xh100, 2x8xh200; also a100, b200, l40s, cpu."
        ),
    ],
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Of each device, such as 40GB; default: its kind's, of cpu what is free here."
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(metavar="FORM", help="bf16, fp8 (experts only), int8 or int4; on a CPU fp32", show_default="bf16"),
    ] = None,
    kv_dtype: Annotated[
        str | None,
        typer.Option(metavar="FORM", help="Keys and values: bf16, fp32, fp16, fp8 or int8.", show_default="bf16"),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(metavar="TOKENS", help="Of each sequence; k is 1,024 and M 1,048,576.", show_default="32k"),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", "-c", help="Sequences at once.", show_default="16")
    ] = None,
    copies: Annotated[
        int, typer.Option(help="Fewest replicas of each expert; on different nodes where there are several.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    values: Annotated[bool, typer.Option("--values", help="Print the values.yaml that deploys it.")] = False,
) -> None:
    """Say what runs where, how much context fits, and how fast it can be; or why it does not fit, and what would.

    Nothing is started and no GPU is needed. Speeds are a roofline: every assumption is listed with its value and
    source. Exits with 1 when it does not fit. docs/planning.md explains every line.

    \b
    herd plan scout --gpus h100 --quantize int4 --context 256k --concurrency 1
    herd plan scout --gpus 8xh100 --context 128k --concurrency 32
    herd plan scout --gpus 2x8xh200 --context 10M --concurrency 1
    herd plan maverick --gpus 2x8xh200 --quantize fp8 --copies 2 --values > values.yaml
    herd plan demo --gpus cpu --memory 4GiB
    """  # noqa: D301  click takes \b for: leave these lines as they are
    from cluster.planner.advice import plan_or_refuse
    from cluster.planner.document import as_object, asked
    from cluster.planner.read_question import Texts, read_question

    with explained():
        if as_json and values:
            raise BadConfig("expected --json or --values, found both; choose one")
        question = read_question(
            Texts(
                model=model,
                gpus=gpus,
                memory=memory,
                quantize=quantize,
                kv_dtype=kv_dtype,
                context=context,
                concurrency=concurrency,
                copies=copies,
            )
        )
        try:
            found = plan_or_refuse(question)
        except NotEnoughMemory as error:
            if not as_json:
                raise
            ways = error.metadata["ways_out"].splitlines()
            print(json.dumps({"fits": False, "asked": asked(question), "reason": error.message, "ways_out": ways}))
            end(FAILED)
        if as_json:
            print(json.dumps(as_object(found), indent=1))
        elif values:
            from cluster.planner.values import as_values

            print(as_values(found, shlex.join(["herd", *sys.argv[1:]])), end="")
        else:
            from cluster.cli.status import make_console
            from cluster.planner.report import render

            make_console().print(render(found))
