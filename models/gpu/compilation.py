"""What the kernels become for a card that is not there: registers, shared memory, spills, instructions.

    python -m models.gpu.compilation

compiles every kernel as it is launched, for sm_90 (H100, H200), and prints one line of JSON for each. Needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

os.environ.pop("TRITON_INTERPRET", None)  # before triton, which reads it once

import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from models.gpu.launches import down_launch, gate_up_launch
from models.gpu.product import Launch, grouped_product_kernel
from models.gpu.swiglu import gate_up_kernel
from models.gpu.weight import GROUP, Form

TARGET = GPUTarget("cuda", 90, 32)
TOKENS = (1, 32, 64, 4096)
"""That are cut differently."""
_TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")
_TOOL_S = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """A kernel as a card would run it."""

    kernel: str
    form: Form
    most_tokens: int
    launch: Launch
    registers: int
    """Of a thread; the processor has 65,536."""
    shared_bytes: int
    """Of a program; the processor has 232,448 for one."""
    stack_bytes: int
    """Of a thread: registers that did not fit."""
    tensor_core_instructions: int
    wide_loads: int
    """Copies to shared memory of 16 bytes a thread, of `loads`."""
    loads: int
    seconds: float
    """That compiling took."""


def compile_all(most_tokens: Sequence[int] = TOKENS) -> Iterator[Compiled]:
    """Compile every kernel for every form of weights, as it is cut for each of some numbers of tokens."""
    for kernel, choose in ((gate_up_kernel, gate_up_launch), (grouped_product_kernel, down_launch)):
        for form in get_args(Form):
            for launch, number in {choose(form, number): number for number in most_tokens}.items():
                yield compile_one(kernel, form, number, launch)


def compile_one(kernel: Any, form: Form, most_tokens: int, launch: Launch) -> Compiled:
    """Compile a kernel for shapes whose sizes are multiples of 128, and read what became of it."""
    constants = {
        "FORM": form,
        "TOKENS": launch.tokens,
        "OUTPUTS": launch.outputs,
        "INPUTS": GROUP if form == "int4" else launch.inputs,
        "IS_WHOLE": True,
        "IS_NATIVE": True,
    }
    types = {"x_ptr": "*bf16", "tiles_ptr": "*i64", "out_ptr": "*bf16"} | dict.fromkeys(constants, "constexpr")
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {name: types.get(name, "i32") for name in names},
        constants,
        {(index,): [["tt.divisibility", 16]] for index, name in enumerate(names) if name not in constants},
    )
    began = time.perf_counter()
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    compiled = triton.compile(source, target=TARGET, options=options)
    seconds = time.perf_counter() - began
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = _tool("cuobjdump", "--dump-resource-usage", file.name), _tool("nvdisasm", "-c", file.name)
    found = _RESOURCES.search(usage)
    if found is None:
        raise RuntimeError(f"expected cuobjdump to tell registers and stack, found: {usage[:500]}")
    return Compiled(
        kernel=kernel.__name__,
        form=form,
        most_tokens=most_tokens,
        launch=launch,
        registers=int(found[1]),
        shared_bytes=compiled.metadata.shared,
        stack_bytes=int(found[2]) + int(found[3]),
        tensor_core_instructions=len(re.findall(r"\bHG?MMA\b", code)),
        wide_loads=len(re.findall(r"\bLDGSTS[.\w]*\.128", code)),
        loads=len(re.findall(r"\bLDGSTS\b", code)),
        seconds=round(seconds, 2),
    )


def _tool(name: str, *arguments: str) -> str:
    command = [str(_TOOLS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_S, check=True).stdout


def main() -> int:
    """Print a line for each kernel; return 1 if one spills registers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="that one weight meets at most (all)")
    spills = False
    for each in compile_all(parser.parse_args().tokens):
        print(json.dumps(asdict(each)), flush=True)
        spills |= each.stack_bytes > 0
    return int(spills)


if __name__ == "__main__":
    sys.exit(main())
