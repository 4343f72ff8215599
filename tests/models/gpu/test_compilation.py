"""The kernels as a Hopper card would run them, compiled without one in a process that does not interpret them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

if platform.system() != "Linux" or platform.machine() != "x86_64":
    pytest.skip("Triton is installed on x86-64 Linux only", allow_module_level=True)

# What one program may have of a processor's shared memory, in bytes, and of its registers.
MOST_SHARED_BYTES = 232_448
MOST_REGISTERS = 65_536
COMPILE_S = 280
WITH_PRODUCTS = {"gate_up_kernel", "grouped_product_kernel", "attend_kernel"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> list[dict]:
    """What became of every kernel and form, cut for few tokens and for many."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    command = [sys.executable, "-m", "models.gpu.compilation", "--tokens", "1", "4096"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=COMPILE_S, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr
    return lines


def test_every_kernel_compiles_without_spilling_registers(compiled):
    found = {each["kernel"] for each in compiled}
    assert found == {*WITH_PRODUCTS, "merge_kernel", "place_kernel", "add_norm_kernel", "route_kernel"}
    forms = {(each["kernel"], each["constants"]["FORM"]) for each in compiled if "FORM" in each["constants"]}
    assert len(forms) == 2 * 4
    assert [each for each in compiled if each["stack_bytes"]] == []


def test_a_processor_has_room_for_every_program(compiled):
    for each in compiled:
        assert each["shared_bytes"] <= MOST_SHARED_BYTES, each
        assert each["registers"] * 32 * each["warps"] <= MOST_REGISTERS, each


def test_where_weights_are_all_that_counts_every_load_is_as_wide_as_a_thread_can(compiled):
    few = [each for each in compiled if each["constants"].get("TOKENS") == 16]
    assert len(few) == 8
    for each in few:
        assert each["wide_loads"] == each["loads"] > 0, each


def test_every_product_is_the_tensor_cores(compiled):
    products = [each for each in compiled if each["kernel"] in WITH_PRODUCTS]
    assert all(each["tensor_core_instructions"] for each in products)
