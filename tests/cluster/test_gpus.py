"""What is made of the driver's own program, played by a script that prints what it prints."""

from __future__ import annotations

import pytest

from cluster.doctor import Verdict, gpu_finding
from cluster.gpus import Gpu, Gpus, find_gpus, usable_gpus

TABLE = """0, GPU-aaaa1111, NVIDIA H100 80GB HBM3, 81559, 81000, 9.0
1, GPU-bbbb2222, NVIDIA A100-SXM4-80GB, 81920, 500, 8.0
"""
H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=81559 << 20, free_bytes=81000 << 20, capability=(9, 0))

A100 = Gpu(name="NVIDIA A100-SXM4-80GB", memory_bytes=81920 << 20, free_bytes=500 << 20, capability=(8, 0))


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Have a driver's program that prints something and ends with a code."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(printed: str, code: int = 0) -> None:
        (tmp_path / "printed").write_text(printed)
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n/bin/cat {tmp_path / 'printed'}\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return install


def test_a_machine_without_a_driver_has_none_and_no_problem(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_gpus()
    assert (found.cards, found.problem) == ((), "")


def test_each_line_is_a_card(driver):
    driver(TABLE)
    found = find_gpus()
    assert found.cards == (H100, A100)


@pytest.mark.parametrize(
    ("named", "count"), [("0", 1), ("1,0", 2), ("GPU-aaaa", 1), ("", 0), ("-1", 0), ("NoDevFiles", 0)]
)
def test_cards_that_the_environment_does_not_name_are_not_there(driver, monkeypatch, named, count):
    driver(TABLE)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert len(find_gpus().cards) == count


@pytest.mark.parametrize(
    ("printed", "code", "words"),
    [("couldn't communicate with the NVIDIA driver\n", 9, "couldn't communicate"), ("0, GPU-a, H100\n", 0, "not tell")],
)
def test_a_driver_that_does_not_answer_is_told(driver, printed, code, words):
    driver(printed, code)
    found = find_gpus()
    assert found.cards == ()
    assert words in found.problem


@pytest.mark.parametrize(("cuda", "count"), [(None, 0), ("12.8", 2)])
def test_a_torch_that_was_built_without_cuda_uses_none_and_says_so(driver, monkeypatch, cuda, count):
    driver(TABLE)
    monkeypatch.setattr("torch.version.cuda", cuda)
    usable = usable_gpus()
    assert len(usable.cards) == count
    assert ("2 GPUs are there, but torch was built without CUDA" in usable.problem) == (count == 0)


@pytest.mark.parametrize(
    ("gpus", "triton", "verdict", "words"),
    [
        (Gpus(), "", Verdict.OK, "none: everything computes on CPUs"),
        (Gpus(problem="no driver"), "", Verdict.WARN, "no driver"),
        (Gpus((H100, H100)), "", Verdict.OK, "2 x NVIDIA H100 80GB HBM3 (compute capability 9.0), at least 79.1 GiB"),
        (Gpus((H100, A100)), "", Verdict.WARN, "expected compute capability 9.0 or later"),
        (Gpus((H100,)), "it missing", Verdict.WARN, "expected triton"),
    ],
)
def test_doctor_tells_of_gpus_and_does_not_mind_that_there_are_none(gpus, triton, verdict, words):
    finding = gpu_finding(gpus, lambda: triton)
    assert (finding.subject, finding.verdict) == ("GPUs", verdict)
    assert words in finding.text
