import socket
from types import SimpleNamespace

import pytest

from benchmarks.free_port import find_free_port
from cluster.doctor import Verdict, examine, examine_gpus
from cluster.imports import find_intruder
from cluster.machine import check_port, read_machine
from cluster.versions import OLDEST, check_version
from protos import cuda_driver
from protos.cuda_driver import DriverError
from protos.errors import BadConfig, PortTaken
from tests.conftest import ROOT


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use_is_refused_with_its_option(host):
    with socket.create_server((host, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} free for HTTP.*--http-port"):
            check_port(port, "HTTP", "--http-port")


def test_the_machine_has_cores_and_memory():
    machine = read_machine()
    assert machine.cores >= 1
    assert machine.free_bytes > 1024**2


def test_our_packages_are_ours():
    assert find_intruder() is None


def test_an_intruder_is_named(tmp_path):
    (tmp_path / "router").mkdir()
    (tmp_path / "router" / "__init__.py").touch()
    message = find_intruder([str(tmp_path), str(ROOT)])
    assert message is not None
    assert f"'router' in {ROOT}, found {tmp_path / 'router' / '__init__.py'}" in message


def test_a_missing_package_is_named(tmp_path):
    message = find_intruder([str(tmp_path)])
    assert message is not None
    assert "'cluster'" in message
    assert "found none" in message


def test_an_old_version_is_refused(monkeypatch):
    monkeypatch.setitem(OLDEST, "torch", "99.1")
    with pytest.raises(BadConfig, match=r"expected torch 99\.1 or newer, found \d"):
        check_version("torch")


def test_a_version_with_a_build_tag_is_compared_by_its_numbers(monkeypatch):
    monkeypatch.setattr("cluster.versions.version", lambda name: "2.11.0+cpu")
    assert check_version("torch") == "2.11.0+cpu"


def test_doctor_fails_on_a_port_in_use_and_passes_the_rest():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        verdicts = {finding.subject: finding.verdict for finding in examine("demo", port, find_free_port())}
    assert verdicts.pop("HTTP port") is Verdict.FAIL
    assert Verdict.FAIL not in verdicts.values()
    assert {"python", "torch", "ray", "imports", "memory", "gRPC port"} <= set(verdicts)


@pytest.mark.parametrize(("reaches", "verdict"), [(True, Verdict.OK), (False, Verdict.WARN)])
def test_doctor_says_whether_memory_of_gpus_can_be_shared(monkeypatch, reaches, verdict):
    driver = SimpleNamespace(num_cards=2, check_export=lambda card: None, can_reach=lambda card, other: reaches)
    monkeypatch.setattr("cluster.doctor.load_driver", lambda: driver)
    found = examine_gpus()
    assert found.verdict is verdict
    assert ("found that 0 and 1, 1 and 0 cannot" in found.text) == (not reaches)


def test_doctor_says_why_memory_of_gpus_cannot_be_shared(monkeypatch):
    def refuse(card):
        raise DriverError("cuIpcGetMemHandle returned CUDA_ERROR_NOT_SUPPORTED")

    monkeypatch.setattr("cluster.doctor.load_driver", lambda: SimpleNamespace(num_cards=1, check_export=refuse))
    assert examine_gpus().verdict is Verdict.WARN
    assert "CUDA_ERROR_NOT_SUPPORTED: processes of this host exchange tensors through its memory" in examine_gpus().text


def test_doctor_misses_no_gpu_where_there_is_none(monkeypatch):
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libno-such-driver.so")
    cuda_driver.load_driver.cache_clear()
    assert examine_gpus().verdict is Verdict.OK
    assert "there is no NVIDIA driver" in examine_gpus().text


def test_doctor_fails_on_a_model_that_is_not_there():
    findings = {finding.subject: finding for finding in examine("/no/such/model", find_free_port(), find_free_port())}
    assert findings["memory"].verdict is Verdict.FAIL
    assert "/no/such/model" in findings["memory"].text
