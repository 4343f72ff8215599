"""What is made of the driver's own program, played by a script that prints what it prints."""

from __future__ import annotations

import pytest

from cluster.gpus import Gpu, find_gpus

TABLE = """0, GPU-aaaa1111, NVIDIA H100 80GB HBM3, 81559, 81000, 9.0
1, GPU-bbbb2222, NVIDIA A100-SXM4-80GB, 81920, 500, 8.0
"""
H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=81559 << 20, free_bytes=81000 << 20, capability=(9, 0))


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
    assert found.cards[0] == H100
    assert [card.capability for card in found.cards] == [(9, 0), (8, 0)]


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


def test_a_torch_without_cuda_leaves_none_and_says_so(driver):
    driver(TABLE)
    assert "2 GPUs are there, but torch was built without CUDA" in find_gpus().without_cuda().problem
