"""`herd status`: what runs, once or each second."""

from __future__ import annotations

import os
import time

import grpc
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from cluster.cli.server_address import CALL_TIMEOUT_S, channel_to
from cluster.cli.status_tables import Answers, render
from protos.errors import from_rpc_error
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1.inference_pb2_grpc import InferenceServiceStub

_PERIOD_S = 1.0
_PIPED_WIDTH = 300
"""Characters of a line where there is no terminal: whoever reads it wants nothing cut."""


def show_status(address: str, *, by_layer: bool) -> None:
    """Ask a running Herd and print what it says, the experts' load by replica or by layer.

    Raises:
        ServingError: it does not answer.
    """
    console = make_console()
    with channel_to(address) as channel:
        answers = _ask(InferenceServiceStub(channel), address)
    console.print(render(answers, console.width, by_layer=by_layer))


def watch_status(address: str, *, by_layer: bool) -> None:
    """Ask each second and show the newest answers until Ctrl-C; what is old says since when.

    Raises:
        ServingError: it does not answer at first.
    """
    console = make_console()
    with channel_to(address) as channel:
        stub = InferenceServiceStub(channel)
        answers = _ask(stub, address)
        try:
            if console.is_terminal:
                _watch(stub, address, answers, console, by_layer=by_layer)
            else:
                _repeat(stub, address, answers, console, by_layer=by_layer)
        except KeyboardInterrupt:
            return  # the way to end it


def make_console() -> Console:
    """Return a console as wide as the terminal; where there is none, one without colours that cuts nothing."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPED_WIDTH
    return console


def _watch(stub: InferenceServiceStub, address: str, answers: Answers, console: Console, *, by_layer: bool) -> None:
    heard_at, problem = time.time(), ""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            note = Text(
                problem or f"{time.strftime('%H:%M:%S')}, each second; Ctrl-C ends", "red" if problem else "dim"
            )
            live.update(Group(note, render(answers, console.width, by_layer=by_layer)), refresh=True)
            time.sleep(_PERIOD_S)
            try:
                answers = _ask(stub, address)
                heard_at, problem = time.time(), ""
            except grpc.RpcError as error:
                since = time.strftime("%H:%M:%S", time.localtime(heard_at))
                problem = f"nothing newer since {since}: {from_rpc_error(error, address).message}"


def _repeat(stub: InferenceServiceStub, address: str, answers: Answers, console: Console, *, by_layer: bool) -> None:
    """Print one answer after the other: into a file, nothing can be drawn over."""
    while True:
        console.print(time.strftime("%H:%M:%S"), render(answers, console.width, by_layer=by_layer), sep="\n")
        time.sleep(_PERIOD_S)
        answers = _ask(stub, address)


def _ask(stub: InferenceServiceStub, address: str) -> Answers:
    """Return what a server says; that no router answers is no reason not to show which replicas there are."""
    info = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=CALL_TIMEOUT_S)
    try:
        return Answers(info=info, load=stub.GetLoad(pb.GetLoadRequest(), timeout=CALL_TIMEOUT_S))
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.UNAVAILABLE:
            raise
        return Answers(info=info, load=pb.GetLoadResponse(), load_problem=from_rpc_error(error, address).message)
