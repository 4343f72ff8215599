"""The command as a process: exit codes, both streams, files, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.cluster.scripted_router import babbles
from tests.conftest import ROOT

HERD = [sys.executable, "-c", "from cluster.cli import main; main()", "bench"]
IDS = ("-i", "8", "--token-ids", "32-99")
SHORT = ("-c", "2", "-n", "4", "-o", "3", *IDS)


def start(*args: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*HERD, *args], **streams, text=True, cwd=ROOT, env=environment)


def run(*args: str) -> tuple[int, str, str]:
    process = start(*args)
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


def test_help_teaches_by_three_examples():
    code, stdout, _ = run("--help")
    assert code == 0
    assert stdout.count("\n  herd bench ") == 3


def test_a_run_prints_its_table_and_writes_its_files(door, tmp_path):
    record, page = tmp_path / "run.json", tmp_path / "run.html"
    code, stdout, stderr = run(
        "--grpc", door.grpc_address, *SHORT, "--slo", "ttft=1m", "--json", str(record), "--plot", str(page)
    )
    assert (code, stderr) == (0, "")
    assert "4 ok, 0 failed" in stdout
    assert "goodput           100.0% of requests" in stdout
    assert json.loads(record.read_text())["summary"]["throughput"]["output_tokens"] == 12
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_ctrl_c_ends_a_run_early_with_its_summary(door, router):
    router.script = babbles
    process = start("--url", door.url, "-c", "2", "-n", "4", "-o", "110", "--warmup", "0", *IDS)
    assert router.wait_until_open(2)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: the load was not sent to its end" in stdout
    assert "Traceback" not in stdout + stderr
    assert router.wait_until_open(0)


def test_a_run_without_an_answer_fails(door):
    code, stdout, _ = run("--grpc", door.grpc_address, *SHORT, "--warmup", "0", "--model", "none")
    assert code == 1
    assert "4 x gRPC NOT_FOUND: " in stdout


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--grpc", "localhost:1"), 1, "expected a running Herd at localhost:1,"),
        (("--url", "http://localhost:1"), 1, "expected an OpenAI API at http://localhost:1/v1,"),
        (("--rate", "1", "-c", "2"), 2, "expected one way to send requests"),
        (("--json", "/nowhere/run.json"), 2, "expected a file that can be written, found /nowhere/run.json"),
        (("--plot", "run.pdf"), 2, "--plot: expected a file ending in .html"),
        (("--trace", "/nowhere"), 2, "--trace: expected a text file"),
    ],
)
def test_what_keeps_a_run_from_beginning_is_one_line_and_an_exit_code(args, code, message, door):
    if "--trace" in args:
        args = (*args, "--grpc", door.grpc_address)
    found, stdout, stderr = run(*args)
    assert (found, stdout) == (code, "")
    assert stderr.startswith("herd: ")
    assert len(stderr.splitlines()) == 1
    assert message in stderr


def test_the_bench_imports_neither_torch_nor_ray_nor_matplotlib():
    script = "import sys, cluster.bench.command; print({'torch', 'ray', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"
