"""Folders that tests read, a tokenizer small enough to make on the spot, and who runs which tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

from models.special_tokens import special_names
from models.tokenizer import Tokenizer
from models.vocabulary import LLAMA4_PATTERN, Vocabulary
from tests.chart.programs import WHY_NOT, find_program
from tests.cluster.browser import find_chromium

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

# Tests run beside each other on few cores. Threads of tiny products that wait for each other on a busy machine take
# longer than the products. Processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Kernels of GPUs run in Triton's interpreter where there is none; it reads this once, when a kernel is defined.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# How long one example takes says nothing.
settings.register_profile("herd", deadline=None)
settings.load_profile("herd")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    """Have workers run whole files, and one running Herd at a time."""
    from tests.scheduling import OneApplicationAtATime  # where pytest-xdist is, which not all machines with GPUs have

    return OneApplicationAtATime(config, log)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Reference data beside the checkout: goldens/ and data/. Tests that ask for it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def demo_dir() -> Path:
    """The demo model that the repository ships."""
    return ROOT / "models" / "demo"


@pytest.fixture(scope="session")
def needs_helm() -> None:
    """Skip tests of the chart without helm; where CI is set they fail, as nobody reads skips there."""
    if find_program("helm") is None:
        if os.environ.get("CI"):
            pytest.fail(f"the chart is not tested: {WHY_NOT}")
        pytest.skip(WHY_NOT)


@pytest.fixture(scope="session")
def small_tokenizer() -> Tokenizer:
    """A Llama 4 tokenizer of the 256 bytes, some merges (also inside characters) and the first 32 special tokens."""
    words = [b"th", b"he", b"the", b"in", b"ing", b"Wo", b"World", b"lo", b"ello", b"Hello", b" t", b" the"]
    stops = [b"st", b"sto", b"stop", b"ab", b"abc", b"bc", b"\n\n"]
    pieces = ["é".encode(), "👩".encode()[:2], "👩".encode()[2:], "世".encode()[1:]]
    tokens = [bytes([value]) for value in range(256)] + words + stops + pieces
    names = special_names("llama4", 32)
    vocabulary = Vocabulary(
        ranks={token: rank for rank, token in enumerate(tokens)},
        specials={name: len(tokens) + index for index, name in enumerate(names)},
        pattern=LLAMA4_PATTERN,
    )
    return Tokenizer(vocabulary, len(tokens) + len(names))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in every run, quiet ones too, that a part of the tests could not run."""
    if not SHARED.is_dir():
        terminalreporter.write_line(f"SKIPPED every test against reference data: there is no {SHARED}", yellow=True)
    if find_program("helm") is None:
        terminalreporter.write_line(f"SKIPPED the chart: {WHY_NOT}", yellow=True)
    if find_chromium() is None:
        terminalreporter.write_line("SKIPPED the status page in a browser: there is no Chromium here", yellow=True)
