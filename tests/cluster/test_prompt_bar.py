"""What a terminal shows before the first token, and that nobody else sees it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cluster.cli.prompt_bar import PromptBar, described
from protos.inference.v1 import inference_pb2 as pb


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (pb.Progress(prompt_tokens_done=5, prompt_tokens=10), "prompt tokens"),
        (pb.Progress(queue_position=2, prompt_tokens=10), "number 2 in line"),
        (pb.Progress(queue_position=1, expected_start_ms=61_400), "number 1 in line, start in about 61 s"),
    ],
)
def test_it_says_what_is_known(progress, expected):
    assert described(progress) == expected


@pytest.mark.parametrize("is_terminal", [True, False])
def test_it_is_shown_on_terminals_only(is_terminal):
    screen = io.StringIO()
    with PromptBar(Console(file=screen, force_terminal=is_terminal, width=100)) as bar:
        bar.update(pb.Progress(prompt_tokens_done=2500, prompt_tokens=10_000))
        bar.close()
    assert ("2500/10000" in screen.getvalue()) == is_terminal
    assert is_terminal or not screen.getvalue()
