"""`herd bench`: its options. What they mean is in cluster/bench/options.py, which is imported when the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.failure import end, explained


def bench(
    grpc: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Herd's gRPC API to ask.", show_default="localhost:9000"),
    ] = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="OpenAI API to ask instead, such as http://localhost:8000/v1.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name in requests; default: the first that is listed.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar=["HERD_API_KEY", "OPENAI_API_KEY"], show_envvar=True, help="Sent as a bearer token."),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Send conversations, of random words unless given.")] = False,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", "-c", help="Closed loop: so many clients.", show_default="8", min=1)
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Open loop: random arrivals, so many per second; they never wait.")
    ] = None,
    burstiness: Annotated[
        float | None,
        typer.Option(help="Of --rate: 1 is Poisson, below 1 in bunches, above more evenly.", show_default="1"),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Replay a trace: Azure's CSV or Mooncake's JSON lines.")
    ] = None,
    time_scale: Annotated[
        float | None, typer.Option(help="Factor on a trace's times; 0.5 doubles the load.", show_default="1")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Rows of the trace to replay; default: all.", min=1)] = None,
    requests: Annotated[
        int | None,
        typer.Option("--requests", "-n", help="How many to send.", show_default="100", min=1),
    ] = None,
    duration: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long to send, such as 30s; then wait for the last ones.")
    ] = None,
    warmup: Annotated[int, typer.Option(help="Requests before the run, which do not count.", min=0)] = 1,
    max_in_flight: Annotated[
        int, typer.Option(help="Open loop and replay: beyond so many, requests are counted as not sent.", min=1)
    ] = 1024,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="Deadline of each request.")] = "10m",
    give_up: Annotated[
        str, typer.Option(metavar="TIME", help="End the run when nobody can be connected to for so long.")
    ] = "10s",
    input_: Annotated[
        str, typer.Option("--input", "-i", metavar="TOKENS", help="Prompts' length: 128, MEAN:STDEV or LOW-HIGH.")
    ] = "128",
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="TOKENS", help="Answers' length, written likewise.")
    ] = "64",
    shared_prefix: Annotated[
        int, typer.Option(metavar="TOKENS", help="First tokens of --input that all prompts share.", min=0)
    ] = 0,
    max_context: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", help="Cut longer requests; default: of a trace, what the server holds.", min=2),
    ] = None,
    token_ids: Annotated[str, typer.Option(metavar="LOW-HIGH", help="Prompts are random ids of these.")] = "100-999",
    prompt_text: Annotated[str | None, typer.Option(metavar="TEXT", help="Send this instead of random ids.")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Send its lines instead, one a request, round and round.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 picks the likeliest token.", min=0)] = 0.0,
    stop_at_eos: Annotated[bool, typer.Option("--stop-at-eos", help="Let the model end answers early.")] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Send OpenAI's own fields only: no ignore_eos, no return_token_ids.")
    ] = False,
    extra_body: Annotated[
        str | None, typer.Option(metavar="JSON", help="Object of further fields of each request's body.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same arrivals, lengths and prompts.", min=0)] = 0,
    slo: Annotated[
        str | None,
        typer.Option(metavar="BOUNDS", help="Report goodput under these: ttft=500ms,tpot=50ms,gap=1s,e2e=10s."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write settings, summary and a row per request.")
    ] = None,
    json_messages: Annotated[
        bool, typer.Option("--json-messages", help="Add the time of every message to those rows.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the run: .html, .png or .svg (needs matplotlib).")
    ] = None,
) -> None:
    """Put load on a Herd or any OpenAI API, and measure what its clients see.

    Prompts are random token ids, so that lengths are exact and nothing is cached that is not meant to be. Prints
    time to first token, time per output token, throughput and errors; docs/bench.md defines every number.
    Ctrl-C ends the run early and still reports what finished.

    \b
    herd bench -c 32 -n 256 -i 512 -o 128
    herd bench --url http://localhost:8000/v1 --rate 2 --duration 60s --slo ttft=1s,tpot=100ms
    herd bench --trace mooncake_trace.jsonl --limit 500 --time-scale 4 --json run.json --plot run.html
    """  # noqa: D301  click takes \b for: leave these lines as they are
    with explained():
        from cluster.bench.command import Outputs, run_command
        from cluster.bench.options import Options, read_settings

        options = Options(
            grpc=grpc,
            url=url,
            model=model,
            api_key=api_key,
            chat=chat,
            concurrency=concurrency,
            rate=rate,
            burstiness=burstiness,
            trace=trace,
            time_scale=time_scale,
            limit=limit,
            requests=requests,
            duration=duration,
            warmup=warmup,
            max_in_flight=max_in_flight,
            timeout=timeout,
            give_up=give_up,
            input=input_,
            output=output,
            shared_prefix=shared_prefix,
            max_context=max_context,
            token_ids=token_ids,
            prompt_text=prompt_text,
            prompt_file=prompt_file,
            temperature=temperature,
            stop_at_eos=stop_at_eos,
            plain=plain,
            extra_body=extra_body,
            seed=seed,
            slo=slo,
        )
        code = run_command(read_settings(options), Outputs(json=json_file, json_messages=json_messages, plot=plot))
        end(code)
