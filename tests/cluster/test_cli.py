"""The command as a process, where exit code and both streams count; starts that cannot succeed never get to Ray."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.chaos.application import HERD
from benchmarks.free_port import find_free_port
from cluster.auth.key_file import key_hash, read_key_file
from cluster.cli.generate import Options, build_request
from protos.errors import InvalidRequest
from tests.conftest import ROOT


def herd(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HERD, *args],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def serve(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    ports = ("--http-port", str(find_free_port()), "--grpc-port", str(find_free_port()))
    return herd("serve", *ports, *args, **environment)


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("herd: ")
    assert len(done.stderr.splitlines()) == 1
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("command", ["serve", "generate"])
def test_help_teaches_by_example(command):
    done = herd(command, "--help", COLUMNS="100")
    assert done.returncode == 0
    assert f"\n  herd {command} " in done.stdout


def test_a_new_key_is_printed_once_and_only_its_hash_is_kept(tmp_path):
    file = tmp_path / "keys.yaml"
    done = herd("keys", "new", "alice", "--file", str(file), "--streams", "2")
    key = done.stdout.strip()
    (entry,) = read_key_file(file)
    assert (entry.name, entry.sha256, entry.streams) == ("alice", key_hash(key), 2)
    assert key not in file.read_text() + done.stderr
    assert_one_line(herd("keys", "new", "alice", "--file", str(file)), 2, "expected a new name")


def test_help_is_quick_since_it_imports_neither_torch_nor_ray():
    script = "import sys; from cluster.cli.app import app; print([n for n in ('torch', 'ray') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_serve_names_the_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = herd("serve", "--http-port", port, "--grpc-port", str(find_free_port()))
    assert_one_line(done, 1, f"port {port} free for HTTP", "--http-port")


def test_serve_suggests_a_model_of_a_similar_name():
    assert_one_line(serve("dmeo"), 2, "found no dmeo", "did you mean demo?")


def test_serve_refuses_an_unknown_setting():
    assert_one_line(serve("--set", "router.slotz=3"), 2, "did you mean slots?")


def test_serve_refuses_a_truncated_checkpoint_with_its_tensor_and_file(tmp_path, demo_dir):
    folder = tmp_path / "cut"
    shutil.copytree(demo_dir, folder)
    os.truncate(folder / "model.safetensors", 10_000_000)
    done = serve(str(folder))
    assert done.returncode == 1
    assert f"{folder / 'model.safetensors'}: model.layers." in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_refuses_what_does_not_fit_the_machine():
    done = serve("--set", "router.kv_bytes=100000000000000")
    assert done.returncode == 1
    assert "of free memory" in done.stderr
    assert "lower router.kv_bytes" in done.stderr


def test_a_shadowed_package_is_named_instead_of_imported(tmp_path):
    (tmp_path / "protos").mkdir()
    (tmp_path / "protos" / "__init__.py").touch()
    assert_one_line(serve(PYTHONPATH=str(tmp_path)), 1, "'protos'", str(tmp_path))


def test_an_interrupt_while_the_model_is_checked_ends_it():
    # A start that is interrupted this early has no Ray to end.
    process = subprocess.Popen([HERD, "serve", "--http-port", str(find_free_port())], stderr=subprocess.PIPE)
    while not _catches_sigterm(process.pid):
        time.sleep(0.01)
    process.send_signal(2)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == b""


def _catches_sigterm(pid: int) -> bool:
    """Tell whether the process handles SIGTERM: Python by itself does not, `herd serve` does."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) & 1 << 14)


@pytest.mark.parametrize("command", [("generate", "hi"), ("status",)])
def test_a_server_that_is_not_there_is_explained(command):
    address = f"localhost:{find_free_port()}"
    assert_one_line(herd(*command, "--address", address), 1, address, "herd serve")


@pytest.mark.parametrize("address", ["nohost", "host:port", ":9000"])
def test_an_address_that_is_none_is_refused(address):
    assert_one_line(herd("status", "--address", address), 2, "expected HOST:PORT")


def test_a_prompt_becomes_a_chat_with_its_system_message():
    request = build_request(Options(prompt="hi", system="be brief", max_tokens=3, temperature=0.0, stop=("x",)))
    assert [(each.role, each.content) for each in request.chat.messages] == [("system", "be brief"), ("user", "hi")]
    assert (request.stopping.max_tokens, list(request.stopping.stop)) == (3, ["x"])
    assert request.sampling.HasField("temperature")
    assert not request.sampling.HasField("top_p")


def test_raw_text_and_token_ids_are_sent_as_they_are():
    assert build_request(Options(prompt="def f", raw=True)).prompt == "def f"
    assert list(build_request(Options(token_ids="1, 2,3")).token_ids.ids) == [1, 2, 3]


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(prompt="a", token_ids="1"),
        Options(token_ids="1,x"),
        Options(token_ids="1,99999999999"),
        Options(prompt="a", raw=True, system="b"),
        Options(prompt="a", max_tokens=-1),
        Options(prompt="a", seed=-1),
    ],
)
def test_options_that_contradict_or_do_not_fit_are_refused(options):
    with pytest.raises(InvalidRequest):
        build_request(options)
