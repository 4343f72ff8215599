"""`herd status` against a front door before a busy cluster."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import time
from dataclasses import replace

import pytest
from rich.console import Console

from cluster.cli.fitted_table import Column, fitted_table
from cluster.cli.heat_map import heat_map, short_number
from cluster.cli.status_tables import Answers, format_age, format_ranges, render
from cluster.grpc.messages import load_response, server_info_response
from cluster.router_client import PlacementInfo
from cluster.service import InferenceService
from protos.inference.v1 import inference_pb2 as pb
from tests.cluster.busy_cluster import HOSTILE, busy_placement, router_loads, with_experts
from tests.cluster.live_front_door import LiveFrontDoor
from tests.cluster.scripted_router import ScriptedRouter, says
from tests.cluster.test_cli import HERD, herd

WAIT_S = 60


def answers(model, num_experts=16, num_groups=4) -> Answers:
    model = with_experts(model, num_experts)
    info = server_info_response(model, busy_placement(num_experts, num_groups))
    return Answers(info=info, load=load_response(router_loads(ejected=("experts-1-0",))))


def printed(renderable, width: int, color_system=None) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=color_system, force_terminal=color_system is not None)
    console.print(renderable)
    return out.getvalue()


@pytest.fixture
def busy_door(id_model):
    router = ScriptedRouter(says(1))
    router.placement, router.loads = busy_placement(16, 4), router_loads(ejected=("experts-1-0",))
    model = with_experts(id_model, 16)
    with LiveFrontDoor(InferenceService(model, router)) as door:
        yield door


def test_that_no_router_runs_is_said(id_model):
    info = server_info_response(with_experts(id_model, 16), busy_placement(16, 4))
    assert "no router runs; the first request starts one" in printed(
        render(Answers(info=info, load=load_response(())), 120), 120
    )


def test_experts_in_the_routers_processes_are_said_to_be_there_and_have_no_table(id_model):
    model = replace(with_experts(id_model, 16), experts_in_router=True)
    info = server_info_response(model, PlacementInfo(version=0))
    text = printed(render(Answers(info=info, load=load_response(())), 120), 120)
    assert "16 experts, 1 per token, in each router's process" in " ".join(text.split())
    assert "expert replica" not in text


def test_status_in_a_pipe_is_whole_and_plain(busy_door, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # parallel test processes have it
    done = herd("status", "--address", busy_door.grpc_address)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    for words in (
        "router-a",
        "passed over by 1",
        "0-3",
        "4-7 + 0",
        "640+",
        "lost: no heartbeat came any more",
        HOSTILE,
    ):
        assert words in done.stdout
    assert "…" not in done.stdout.split("tokens/s of each expert")[0]
    assert "no room" not in done.stdout


def test_watch_draws_anew_until_interrupted_and_leaves_the_terminal_as_it_was(busy_door):
    ours, theirs = pty.openpty()
    command = [HERD, "status", "--watch", "--address", busy_door.grpc_address]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    seen, give_up_at = b"", time.monotonic() + WAIT_S
    while seen.count(b"each second; Ctrl-C ends") < 2 and time.monotonic() < give_up_at:
        if select.select([ours], [], [], 1)[0]:
            seen += os.read(ours, 1 << 16)
    process.send_signal(signal.SIGINT)
    while select.select([ours], [], [], WAIT_S)[0]:
        try:
            seen += os.read(ours, 1 << 16)
        except OSError:  # Linux's way to say that the other end is closed
            break
    assert process.wait(WAIT_S) == 0
    os.close(ours)
    assert b"\x1b[?1049h" in seen  # a screen of its own
    assert b"\x1b[?1049l" in seen
    assert b"Traceback" not in seen


@pytest.mark.parametrize("width", [30, 40, 80, 120])
def test_no_line_is_longer_than_the_terminal(id_model, width):
    lines = printed(render(answers(id_model, 128, 8), width), width).splitlines()
    assert max(map(len, lines)) <= width


def test_columns_without_room_are_named(id_model):
    text = printed(render(answers(id_model), 80), 80)
    assert "passed over by 1" in text
    assert "no room here for: group," in text


def test_replicas_are_counted_by_state_and_those_that_do_not_serve_are_listed(id_model):
    lines = printed(render(answers(id_model), 200), 200).splitlines()
    assert "replicas: 11 ready, 3 starting, 1 draining, 1 silent, 1 failed" in lines
    [loading] = [line for line in lines if "experts-5-l" in line]
    assert loading.split()[:2] == ["starting", "Experts-5"]
    assert "1.4 GiB of 5.6 GiB" in loading
    assert any("waits for experts [3]" in line for line in lines)
    assert any(line.startswith("Experts-7 failed: expected 64 tensors") for line in lines)
    assert not any("door-a" in line for line in lines)


def test_a_machine_with_all_copies_of_an_expert_is_named(id_model):
    lines = printed(render(answers(id_model), 200), 200).splitlines()
    # Expert 0 has copies on all four.
    assert "node-0: its end would take all copies of experts 1-3" in lines
    assert "node-3: its end would take all copies of experts 12-15" in lines


def test_the_load_by_layer_has_a_line_for_each_layer(id_model):
    lines = printed(render(answers(id_model), 120, by_layer=True), 120).splitlines()
    [first] = [line.split() for line in lines if line.startswith("layer 1 ")]
    assert first[2:5] == ["640", "25", "67"]
    assert sum(line.startswith("layer ") for line in lines) == 4


def test_status_without_a_router_shows_the_replicas_and_says_what_is_missing(busy_door):
    busy_door.service.drain()  # its load is nobody's business any more
    done = herd("status", "--address", busy_door.grpc_address, "--by-layer")
    assert (done.returncode, done.stderr) == (0, "")
    assert "expected a server that stays" in done.stdout
    assert "3 starting" in done.stdout
    assert "layer 7" in done.stdout


def test_the_least_important_column_goes_first():
    columns = (Column("a"), Column("bbbb", rank=1), Column("cccc", rank=2))
    assert printed(fitted_table(columns, [("1", "2", "3")], 12), 80).splitlines()[0].split() == ["a", "bbbb"]


def test_names_are_neither_markup_nor_commands_to_the_terminal():
    text = printed(fitted_table((Column("a"),), [("[red]x[/red]\x1b[2J\n",)], 80), 80)
    assert "[red]x[/red]?[2J?" in text


def test_the_heat_map_colours_cells_by_load(id_model):
    info = answers(id_model).info
    colored = printed(heat_map(16, info.expert_replicas, 100), 100, "truecolor")
    assert "38;2;255;255;255;48;2;8;81;156m3.2k" in colored
    assert "38;2;0;0;0;48;2;222;235;247m   0" in colored


def test_a_band_leaves_out_replicas_that_hold_none_of_its_experts(id_model):
    bands = heat_map(16, answers(id_model).info.expert_replicas, 40).plain.split("\n\n")
    assert len(bands) == 4
    assert "experts-1-1" in bands[1]
    assert "experts-2-1" not in bands[1]


def test_experts_without_any_load_are_cold(id_model):
    idle = pb.ExpertReplica(replica_id="a", expert_ids=[0, 1], home_ids=[0, 1])
    assert "   0    0" in heat_map(2, [idle], 80).plain


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.001, "0.01"),
        (0.26, "0.26"),
        (0.999, "1"),
        (4.06, "4.1"),
        (37.4, "37"),
        (999.6, "1k"),
        (1234, "1.2k"),
    ],
)
def test_numbers_are_written_in_four_characters(value, text):
    assert short_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (200000, "2 d")]
)
def test_ages_are_written_with_one_unit(seconds, text):
    assert format_age(seconds) == text


def test_runs_of_experts_are_folded():
    assert format_ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert format_ranges([]) == ""
