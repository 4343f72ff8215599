"""A replica as a process of its own: what it reads and holds, how it starts, how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
import torch

from experts.__main__ import main, parse_experts
from models.checkpoint import open_checkpoint
from protos import errors
from protos.expert.v1 import expert_pb2
from tests.experts.replica_client import WAIT_S, StreamClient, dispatch_of, outputs_of
from tests.experts.replica_process import ROOT
from tests.experts.wide_model import EXPERT_BYTES, NUM_LAYERS


def test_replica_reads_and_holds_its_share_of_the_experts(run, wide_folder):
    grown_bytes = {}
    for num_held in (1, 4):
        replica = run("--checkpoint", wide_folder, "--experts", f"0-{num_held - 1}")
        share_bytes = num_held * NUM_LAYERS * EXPERT_BYTES
        assert replica.ready["loaded_bytes"] == replica.ready["weight_bytes"] == share_bytes
        grown_bytes[num_held] = replica.ready["rss_bytes"] - replica.ready["rss_before_bytes"]
        # Besides the weights: the code of torch's matrix products, about 16 MB.
        assert share_bytes * 0.95 < grown_bytes[num_held] < share_bytes * 1.05 + 24e6
    more_bytes = 3 * NUM_LAYERS * EXPERT_BYTES
    assert grown_bytes[4] - grown_bytes[1] == pytest.approx(more_bytes, rel=0.1)


def test_process_answers_over_both_sockets(run, tiny_folder, tmp_path):
    replica = run("--checkpoint", tiny_folder, "--unix", tmp_path / "s", "--dtype", "bfloat16", "--experts", "1,3")
    assert replica.ready["expert_ids"] == [1, 3]
    assert replica.ready["unix_address"] == f"unix:{tmp_path / 's'}"
    assert replica.ready["pid"] == replica.process.pid
    checkpoint = open_checkpoint(tiny_folder)
    assert replica.ready["model_fingerprint"] == checkpoint.fingerprint
    for address in (replica.ready["address"], replica.ready["unix_address"]):
        client = StreamClient(address, expert_pb2.Hello(model_fingerprint=checkpoint.fingerprint))
        assert client.next().welcome.replica.expert_ids == [1, 3]
        answer = client.ask(dispatch_of(torch.ones(2, 32, dtype=torch.bfloat16), {1: 1, 3: 1}))
        assert outputs_of(answer, torch.bfloat16).shape == (2, 32)
        client.close()


def test_sigterm_answers_every_accepted_dispatch_and_exits_0(run, wide_folder):
    replica = run("--checkpoint", wide_folder, "--experts", "all", "--threads", 1)
    clients = [replica.connect() for _ in range(3)]
    hidden_ND = torch.randn(256, 1024)
    for number in range(4):
        for client in clients:
            client.send(dispatch_of(hidden_ND, {0: 128, 5: 128}, dispatch_id=number))
    first = [client.next().result.dispatch_id for client in clients]
    replica.process.send_signal(signal.SIGTERM)
    for client, answered in zip(clients, first, strict=True):
        answers = list(client.rest())
        failure = client.end()
        # Accepted means read by the replica: what it had not read yet is refused, never left without a word.
        assert isinstance(errors.from_rpc_error(failure, "replica"), errors.Draining)
        refused = [answer for answer in answers if answer.WhichOneof("message") == "error"]
        assert {errors.from_detail(answer.error.detail).reason for answer in refused} <= {"DRAINING"}
        finished = [answer for answer in answers if answer.WhichOneof("message") == "result"]
        assert [answered, *(answer.result.dispatch_id for answer in finished)] == list(range(1 + len(finished)))
        client.close()
    code, said = replica.end()
    assert (code, said) == (0, "")


def test_sigint_ends_an_idle_replica_with_0(run, tiny_folder):
    replica = run("--checkpoint", tiny_folder)
    assert replica.ready["expert_ids"] == [0, 1, 2, 3]
    replica.process.send_signal(signal.SIGINT)
    assert replica.end() == (0, "")


def test_replica_ends_when_its_parent_is_gone(tiny_folder, tmp_path):
    script = (
        "import os, subprocess, sys\n"
        "command = [sys.executable, '-m', 'experts', '--parent-pid', str(os.getpid()), *sys.argv[1:]]\n"
        "replica = subprocess.Popen(command, stdout=subprocess.PIPE)\n"
        "sys.stdout.buffer.write(replica.stdout.readline())\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, "--checkpoint", tiny_folder, "--unix", tmp_path / "s"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.PIPE,
    )
    told, _ = parent.communicate(timeout=WAIT_S)  # returns once the replica, too, has closed stderr
    assert json.loads(told)["address"]
    assert not (tmp_path / "s").exists()


def test_start_that_cannot_succeed_is_one_line_and_exit_2(run, tmp_path):
    replica = run("--checkpoint", tmp_path)
    assert replica.line == ""
    code, said = replica.end()
    assert code == 2
    assert said.startswith(f"experts: {tmp_path}: expected config.json")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--checkpoint"),
        (("--checkpoint", "TINY", "--experts", "2-9"), "0 to 3"),
        (("--checkpoint", "TINY", "--experts", "few"), "few"),
        (("--checkpoint", "TINY", "--experts", "1,1"), "each"),
        (("--checkpoint", "TINY", "--dtype", "int8"), "int8"),
        (("--checkpoint", "TINY", "--device", "tpu"), "tpu"),
        pytest.param(
            ("--checkpoint", "TINY", "--device", "cuda"),
            "expected a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here"),
        ),
        (("--checkpoint", "TINY", "--quantize", "fp8"), "Hopper"),
        (("--checkpoint", "TINY", "--port", "many"), "many"),
        (("--checkpoint", "TINY", "--port", "99999"), "99999"),
        (("--checkpoint", "TINY", "--unix", "/nowhere/s"), "/nowhere"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(tiny_folder, capsys, arguments, words):
    code = main([str(tiny_folder) if argument == "TINY" else argument for argument in arguments])
    told, said = capsys.readouterr()
    assert (code, told) == (2, "")
    assert words in said
    assert len(said.splitlines()) == 1


def test_expert_ids_are_read_as_ranges_and_lists():
    assert parse_experts("0-2,7", 8) == [0, 1, 2, 7]
    assert parse_experts("all", 3) == [0, 1, 2]
    for wrong in ("", "-1", "1-", "a", "1,,2", "1-2-3"):
        with pytest.raises(errors.BadConfig, match="expected ids"):
            parse_experts(wrong, 8)
