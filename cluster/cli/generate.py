"""`herd generate`: one answer, streamed."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from rich.console import Console

from cluster.cli.prompt_bar import PromptBar
from cluster.cli.server_address import CALL_TIMEOUT_S, channel_to
from protos.errors import InvalidRequest
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1.inference_pb2_grpc import InferenceServiceStub


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What the command line said; None: not given."""

    prompt: str | None = None
    system: str | None = None
    raw: bool = False
    token_ids: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


def stream_answer(options: Options, address: str) -> None:
    """Ask a running Herd and print its answer as it comes, then the counts to standard error.

    Raises:
        ServingError: the options contradict each other, or the call failed.
    """
    request = build_request(options)
    with channel_to(address) as channel:
        stub = InferenceServiceStub(channel)
        has_text = stub.ListModels(pb.ListModelsRequest(), timeout=CALL_TIMEOUT_S).models[0].has_tokenizer
        if not has_text and options.token_ids is None:
            raise InvalidRequest("expected --token-ids, since this model has no tokenizer, found a text: give ids")
        began = time.monotonic()
        first_at = began
        usage = pb.Usage()
        with PromptBar(Console(stderr=True)) as bar:
            for response in stub.Generate(request):
                if response.HasField("progress"):
                    bar.update(response.progress)
                if response.HasField("delta"):
                    bar.close()
                    first_at = time.monotonic() if first_at == began else first_at
                    _print_delta(response.delta, has_text)
                usage = response.finished.usage if response.HasField("finished") else usage
        print()
    print(_counts(usage, first_at - began, time.monotonic() - first_at), file=sys.stderr)


def build_request(options: Options) -> pb.GenerateRequest:
    """Return the message that says what the options do; fields that were not given are left to the server.

    Raises:
        InvalidRequest: no input or two, or a number that no message can hold.
    """
    sampling = {
        name: value
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
        if (value := getattr(options, name)) is not None
    }
    try:
        request = pb.GenerateRequest(
            sampling=pb.Sampling(**sampling),
            stopping=pb.Stopping(max_tokens=options.max_tokens, stop=options.stop, ignore_eos=options.ignore_eos),
        )
        _set_input(request, options)
    except ValueError as error:
        raise InvalidRequest(f"expected numbers of zero or more that fit their field, found: {error}") from error
    return request


def _set_input(request: pb.GenerateRequest, options: Options) -> None:
    if options.token_ids is not None:
        if options.prompt is not None or options.raw or options.system:
            raise InvalidRequest("expected one input, found a text beside --token-ids: leave one out")
        request.token_ids.ids.extend(_parse_ids(options.token_ids))
        return
    if options.prompt is None:
        raise InvalidRequest('expected a prompt, found none: for example herd generate "What does str.join do?"')
    text = sys.stdin.read() if options.prompt == "-" else options.prompt
    if options.raw:
        if options.system:
            raise InvalidRequest("expected no system message with --raw, found one: put it into the prompt")
        request.prompt = text
        return
    if options.system:
        request.chat.messages.add(role="system", content=options.system)
    request.chat.messages.add(role="user", content=text)


def _parse_ids(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if wrong := [part for part in parts if not part.isdecimal()]:
        raise InvalidRequest(f"--token-ids: expected numbers with commas between, found {wrong[0]!r}: correct it")
    return [int(part) for part in parts]


def _print_delta(delta: pb.Delta, has_text: bool) -> None:
    text = delta.text if has_text else "".join(f"{token} " for token in delta.token_ids)
    print(text, end="", flush=True)


def _counts(usage: pb.Usage, first_s: float, rest_s: float) -> str:
    rate = f"{(usage.completion_tokens - 1) / rest_s:.1f} tokens/s after it, " if rest_s > 0 else ""
    return (
        f"[{usage.prompt_tokens} prompt tokens, first token after {first_s * 1000:.0f} ms, {rate}"
        f"{usage.completion_tokens} tokens in all]"
    )
