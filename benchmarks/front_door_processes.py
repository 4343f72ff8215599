"""The processes `front_door.py` measures with: lean clients, one per API, and the engine called in its own process.

Each reads rounds from standard input, one line of JSON each, and answers with one line: seconds from the first request
to the last end, tokens, messages, its own CPU seconds. It ends when its standard input is closed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import queue
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass

from models.cpu.environment import CPU_ENVIRONMENT

os.environ.update(CPU_ENVIRONMENT | os.environ)  # before torch, which reads it once; clients do without torch

GENERATE = "/herd.inference.v1.InferenceService/Generate"
_ANSWER_S = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """What every way to the engine is asked to do, all streams at once."""

    streams: int
    prompt_tokens: int
    max_tokens: int
    vocab_size: int

    def prompts(self) -> list[list[int]]:
        """Return random prompts, the same in every process."""
        draw = random.Random(1)
        return [[draw.randrange(self.vocab_size) for _ in range(self.prompt_tokens)] for _ in range(self.streams)]


@dataclass(slots=True)
class Count:
    """What one stream brought."""

    tokens: int = 0
    messages: int = 0


def serve_rounds(run: Callable[[Round], list[Count]]) -> None:
    """Run the rounds that come in."""
    for line in sys.stdin:
        round_ = Round(**json.loads(line))
        started, cpu = time.perf_counter(), time.process_time()
        counts = run(round_)
        answer = {
            "seconds": time.perf_counter() - started,
            "cpu_s": time.process_time() - cpu,
            "tokens": sum(count.tokens for count in counts),
            "messages": sum(count.messages for count in counts),
        }
        print(json.dumps(answer), flush=True)


# ---- HTTP: a raw socket per stream; chunks are counted, and only the last one is parsed


async def _http_stream(address: str, prompt: list[int], max_tokens: int) -> Count:
    host, _, port = address.rpartition(":")
    body = json.dumps(
        {
            "prompt": prompt,
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    count = Count()
    tail = b""
    while b"[DONE]" not in tail:
        data = await reader.read(65536)
        if not data:
            raise SystemExit(f"stream cut short: {tail!r}")
        count.messages += data.count(b"data: ")
        tail = tail[-2000:] + data
    writer.close()
    usage = next(line for line in reversed(tail.splitlines()) if b'"total_tokens"' in line)
    count.tokens = json.loads(usage.removeprefix(b"data: "))["usage"]["completion_tokens"]
    count.messages -= 2  # usage and [DONE]
    return count


def _run_http(address: str) -> Callable[[Round], list[Count]]:
    async def run(round_: Round) -> list[Count]:
        work = (_http_stream(address, prompt, round_.max_tokens) for prompt in round_.prompts())
        return await asyncio.gather(*work)

    return lambda round_: asyncio.run(run(round_))


# ---- gRPC: messages are counted as bytes, and only the last one is parsed


def _run_grpc(address: str) -> Callable[[Round], list[Count]]:
    import grpc

    from protos.inference.v1 import inference_pb2 as pb

    async def stream(channel: grpc.aio.Channel, prompt: list[int], max_tokens: int) -> Count:
        request = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=prompt),
            sampling=pb.Sampling(temperature=0),
            stopping=pb.Stopping(max_tokens=max_tokens, ignore_eos=True),
        )
        count = Count()
        last = b""
        async for last in channel.unary_stream(GENERATE)(request.SerializeToString()):  # noqa: B007
            count.messages += 1
        count.tokens = pb.GenerateResponse.FromString(last).finished.usage.completion_tokens
        count.messages -= 2  # started and finished
        return count

    async def run(round_: Round) -> list[Count]:
        async with grpc.aio.insecure_channel(address) as channel:
            work = (stream(channel, prompt, round_.max_tokens) for prompt in round_.prompts())
            return await asyncio.gather(*work)

    return lambda round_: asyncio.run(run(round_))


# ---- the engine called in its own process, its experts in others


@contextmanager
def _engine(assignments: list[str]) -> Iterator[Callable[[Round], list[Count]]]:
    """Yield the engine that `herd serve` with these settings has, experts in as many processes."""
    import torch
    from expert_processes import open_experts

    from cluster.config_source import load_config
    from cluster.machine import Machine
    from cluster.plan import make_plan
    from cluster.torch_names import dtype_of
    from models.checkpoint import open_checkpoint
    from models.llama4.decoder import load_decoder
    from models.presets import resolve_model
    from router.engine import Engine
    from router.request import Ended, EngineEvent, GenerationRequest, SamplingParams, TokenChosen

    settings = load_config(None, assignments)
    checkpoint = open_checkpoint(resolve_model(settings.model.path))
    # `herd serve` has found the memory sufficient; what is free beside it decides nothing here.
    plan = make_plan(settings, checkpoint, "benchmark", Machine(cores=os.cpu_count() or 1, free_bytes=2**62))
    torch.set_num_threads(plan.router_threads)
    with ExitStack() as stack:
        experts = stack.enter_context(
            open_experts(checkpoint, plan.expert_groups, dtype=plan.dtype, threads=plan.expert_threads)
        )
        decoder = load_decoder(checkpoint, dtype=dtype_of(plan.dtype))
        engine = Engine(decoder, experts.transport, plan.engine_limits)
        engine.start()
        stack.callback(engine.stop)

        def run(round_: Round) -> list[Count]:
            ended: queue.SimpleQueue[Ended] = queue.SimpleQueue()
            counts = [Count() for _ in range(round_.streams)]

            def receiver(count: Count) -> Callable[[EngineEvent], None]:
                def take(event: EngineEvent) -> None:
                    if isinstance(event, TokenChosen):
                        count.tokens += 1
                        count.messages += 1
                    elif isinstance(event, Ended):
                        ended.put(event)

                return take

            for number, (prompt, count) in enumerate(zip(round_.prompts(), counts, strict=True)):
                request = GenerationRequest(
                    request_id=str(number),
                    prompt_ids=tuple(prompt),
                    max_tokens=round_.max_tokens,
                    sampling=SamplingParams(temperature=0.0),
                )
                engine.submit(request, receiver(count))
            for _ in counts:
                if (event := ended.get(timeout=_ANSWER_S)).error:
                    raise event.error
            return counts

        yield run


def main() -> None:
    """Run one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["http", "grpc", "engine"])
    parser.add_argument("--address", help="of the server, for clients")
    parser.add_argument("--set", action="append", default=[], help="settings, for the engine")
    options = parser.parse_args()
    if options.kind == "engine":
        with _engine(options.set) as run:
            print(json.dumps(asdict(Count())), flush=True)
            serve_rounds(run)
    else:
        print(json.dumps(asdict(Count())), flush=True)
        serve_rounds((_run_http if options.kind == "http" else _run_grpc)(options.address))


if __name__ == "__main__":
    main()
