"""The GPU benchmark runs from end to end: over a tiny model, where there is no card in Triton's interpreter."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def benchmark():
    # By its file: the folder of its parts has the same name.
    spec = importlib.util.spec_from_file_location("benchmarks_gpu_command", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_part_prints_its_rows(benchmark, capsys):
    assert benchmark.main(["--tiny", "--forms", "int4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for beginning in (
        "tiny  int4,    3 tokens",
        "MoE block,    3 tokens",
        "GB on the card",
        "  1 sequences of 7 tokens",
    ):
        assert any(line.startswith(beginning) for line in lines), lines


def test_without_a_card_nothing_is_measured(benchmark, capsys, monkeypatch):
    monkeypatch.setattr(benchmark.torch.cuda, "is_available", lambda: False)
    assert benchmark.main([]) == 2
    assert "found none" in capsys.readouterr().err
