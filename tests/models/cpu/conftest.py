"""The kernels, or a reason why not."""

from __future__ import annotations

import ctypes

import pytest

from models.cpu.library import load_library


@pytest.fixture(scope="session")
def kernels() -> ctypes.CDLL:
    """The compiled kernels. Tests that ask for them are skipped on a machine that has none."""
    library = load_library()
    if library is None:
        pytest.skip("no CPU kernels here: they need AVX-512 and a C compiler, and HERD_CPU_KERNELS not to be 0")
    return library


@pytest.fixture(scope="session")
def int8_kernels(kernels: ctypes.CDLL) -> ctypes.CDLL:
    """Those of int8 as well."""
    if not kernels.herd_has_int8():
        pytest.skip("no int8 kernels here: they need AVX-512 VNNI")
    return kernels
