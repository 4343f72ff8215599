from dataclasses import fields
from inspect import signature
from pathlib import Path

import pytest

from cluster.bench.options import DEFAULT_REQUESTS, Options, read_settings
from cluster.bench.settings import ClosedLoop, OpenLoop, Replay
from cluster.bench.slo import Slo
from cluster.cli.bench import bench
from protos.errors import InvalidRequest


def read(**options):
    return read_settings(Options(**options))


def test_without_options_eight_clients_ask_herds_grpc_api():
    found = read()
    assert (found.endpoint.grpc, found.endpoint.url) == ("localhost:9000", None)
    assert found.arrival == ClosedLoop(concurrency=8)
    assert (found.requests, found.duration_s) == (DEFAULT_REQUESTS, None)
    assert found.endpoint.ignores_eos


def test_the_command_has_every_option_with_the_same_default():
    in_command = {name.rstrip("_"): each.default for name, each in signature(bench).parameters.items()}
    files = {name: in_command.pop(name) for name in ("json_file", "json_messages", "plot")}
    assert files == {"json_file": None, "json_messages": False, "plot": None}
    assert in_command == {each.name: each.default for each in fields(Options)}


def test_each_way_to_send_has_its_options():
    assert read(rate=2.5, burstiness=0.5).arrival == OpenLoop(rate_per_s=2.5, burstiness=0.5)
    replay = read(trace=Path("t"), limit=3, time_scale=2.0)
    assert replay.arrival == Replay(path=Path("t"), time_scale=2.0, limit=3)
    assert replay.requests is None
    assert read(concurrency=3, duration="1m").requests is None


def test_times_and_bounds_are_read():
    found = read(duration="1m", timeout="90s", give_up="500ms", slo="ttft=1s")
    assert (found.duration_s, found.timeout_s, found.give_up_s, found.slo) == (60, 90, 0.5, Slo(ttft=1.0))


def test_prompts_come_from_a_text_or_the_lines_of_a_file(tmp_path):
    (tmp_path / "prompts").write_text("one\n\ntwo\n")
    assert read(prompt_text="hi").prompts.texts == ("hi",)
    assert read(prompt_file=tmp_path / "prompts").prompts.texts == ("one", "two")


def test_a_key_is_in_no_text_of_the_settings():
    assert "secret" not in repr(read(api_key="secret"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "http://a", "grpc": "a:1"}, "expected one target"),
        ({"rate": 1.0, "concurrency": 2}, "found --concurrency and --rate: choose one"),
        ({"rate": 1.0, "trace": Path("t")}, "found --rate and --trace: choose one"),
        ({"trace": Path("t"), "requests": 5}, "write --limit instead"),
        ({"burstiness": 2.0}, "--burstiness: expected --rate beside it"),
        ({"time_scale": 2.0}, "--time-scale: expected --trace beside it"),
        ({"limit": 2}, "--limit: expected --trace beside it"),
        ({"rate": 0.0}, "--rate: expected a positive number, found 0.0"),
        ({"rate": float("nan")}, "--rate: expected a positive number, found nan"),
        ({"rate": 1.0, "burstiness": -1.0}, "--burstiness: expected a positive number"),
        ({"trace": Path("t"), "time_scale": 0.0}, "--time-scale: expected a positive number"),
        ({"token_ids": "5"}, "--token-ids: expected LOW-HIGH, found '5'"),
        ({"token_ids": "9-5"}, "--token-ids: expected LOW-HIGH, found 9-5: swap them"),
        ({"prompt_text": "a", "prompt_file": Path("b")}, "expected one source of prompts"),
        ({"prompt_file": Path("/nowhere")}, "--prompt-file: expected a text file"),
        ({"prompt_file": Path("/dev/null")}, "--prompt-file: expected a prompt on each line"),
        ({"prompt_text": "a", "trace": Path("t")}, "found --prompt-text or --prompt-file"),
        ({"extra_body": "{"}, "--extra-body: expected a JSON object"),
        ({"extra_body": "[]"}, "--extra-body: expected a JSON object"),
        ({"extra_body": '{"a": 1}'}, "--extra-body: expected --url beside it"),
        ({"shared_prefix": 128}, "--shared-prefix: expected fewer tokens than --input 128, found 128"),
        ({"shared_prefix": 8, "input": "8-20"}, "--shared-prefix: expected fewer tokens"),
        ({"input": "0"}, "--input: expected tokens"),
        ({"output": "x"}, "--output: expected tokens"),
        ({"duration": "x"}, "--duration: expected a duration"),
        ({"timeout": "0s"}, "--timeout: expected a duration"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InvalidRequest, match=message):
        read(**options)
