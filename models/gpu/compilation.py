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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

os.environ.pop("TRITON_INTERPRET", None)  # before triton, which reads it once

import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from models.gpu.attention import attend_kernel, merge_kernel, place_kernel
from models.gpu.attention_pages import KEYS
from models.gpu.launches import down_launch, gate_up_launch
from models.gpu.product import cut_constants, grouped_product_kernel
from models.gpu.residual import add_norm_kernel
from models.gpu.route import route_kernel
from models.gpu.swiglu import gate_up_kernel
from models.gpu.weight import Form

TARGET = GPUTarget("cuda", 90, 32)
TOKENS = (1, 32, 64, 4096)
"""That are cut differently."""
_TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")
_TOOL_S = 60
_SCOUT_HEADS = {"HEAD": 128, "PER_GROUP": 5}
_PARTS, _PAGE, _WIDTH = 8, 16, 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A kernel as it is launched somewhere."""

    kernel: Any
    of: str
    """What for."""
    types: Mapping[str, str]
    """Of arguments that are no 32-bit integers, as Triton writes them."""
    constants: Mapping[str, object]
    warps: int
    stages: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """A kernel as a card would run it."""

    kernel: str
    of: str
    constants: Mapping[str, object]
    warps: int
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


def expert_cases(most_tokens: Sequence[int] = TOKENS) -> Iterator[Case]:
    """Yield the products, for every form of weights, as they are cut for each of some numbers of tokens."""
    types = {"x_ptr": "*bf16", "tiles_ptr": "*i64", "out_ptr": "*bf16"}
    for kernel, choose in ((gate_up_kernel, gate_up_launch), (grouped_product_kernel, down_launch)):
        for form in get_args(Form):
            for launch in dict.fromkeys(choose(form, number) for number in most_tokens):
                constants = cut_constants(form, launch) | {"IS_WHOLE": True, "IS_NATIVE": True}
                yield Case(
                    kernel=kernel,
                    of=f"{form}, {launch.tokens} tokens",
                    types=types,
                    constants=constants,
                    warps=launch.warps,
                    stages=launch.stages,
                )


def attention_cases() -> Iterator[Case]:
    """Yield attention with Scout's heads: a prompt's tokens, and lone ones over many keys."""
    types = dict.fromkeys(("q_ptr", "keys_ptr", "values_ptr"), "*bf16")
    tables = {"queries_ptr": "*i32", "pages_ptr": "*i32", "lse_ptr": "*fp32", "scale": "fp32"}
    for of, rows, splits, out in (("prompts", 64, 1, "*bf16"), ("lone tokens", 16, _PARTS, "*fp32")):
        constants = _SCOUT_HEADS | {"ROWS": rows, "KEYS": KEYS, "PAGE": _PAGE, "SPLITS": splits, "IS_NATIVE": True}
        pointers = types | tables | {"out_ptr": out}
        yield Case(kernel=attend_kernel, of=of, types=pointers, constants=constants, warps=4, stages=2)
    parts = {"parts_ptr": "*fp32", "lse_ptr": "*fp32", "out_ptr": "*bf16"}
    yield Case(kernel=merge_kernel, of="parts", types=parts, constants={"HEAD": 128, "SPLITS": _PARTS}, warps=4)
    for rotates in (True, False):
        flags = {"ROTATES": rotates, "IS_INTERLEAVED": True, "NORMS": rotates, "HAS_TEMPERATURE": not rotates}
        pointers = types | {"qkv_ptr": "*bf16", "turns_ptr": "*fp32", "temperature_ptr": "*fp32"}
        of = "local layers" if rotates else "global layers"
        pointers |= {"slots_ptr": "*i64", "eps": "fp32"}
        yield Case(kernel=place_kernel, of=of, types=pointers, constants={"HEAD": 128, **flags}, warps=1)


def step_cases() -> Iterator[Case]:
    """Yield what a decode step does between its products, for Scout and Maverick."""
    rows = dict.fromkeys(("hidden_ptr", "base_ptr", "outputs_ptr", "weight_ptr", "gate_ptr"), "*bf16")
    rows |= {"rows_ptr": "*i32", "new_hidden_ptr": "*bf16", "normed_ptr": "*bf16", "logits_ptr": "*fp32", "eps": "fp32"}
    for of, choices, experts in (("before attention", 1, 0), ("before experts", 0, 4)):
        constants = {"HAS_BASE": True, "CHOICES": choices, "EXPERTS": experts, "WIDTH": _WIDTH}
        yield Case(kernel=add_norm_kernel, of=of, types=rows, constants=constants, warps=8)
    pointers = {"logits_ptr": "*fp32", "normed_ptr": "*bf16", "x_ptr": "*bf16"}
    pointers |= dict.fromkeys(("count_ptr", "rows_ptr"), "*i32")
    pointers |= dict.fromkeys(("experts_ptr", "gate_up_tiles_ptr", "down_tiles_ptr"), "*i64")
    for tokens, experts in ((1, 16), (64, 16), (64, 128), (128, 128)):
        constants = {"CHOICES": 1, "TILE": 16, "TOKENS": tokens, "EXPERTS": experts, "TILES": 256, "WIDTH": _WIDTH}
        of = f"{tokens} tokens, {experts} experts"
        yield Case(kernel=route_kernel, of=of, types=pointers, constants=constants, warps=8)


def compile_case(case: Case) -> Compiled:
    """Compile for sizes that are multiples of 16, and read what became of it."""
    names = case.kernel.arg_names
    types = {name: case.types.get(name, "i32") for name in names} | dict.fromkeys(case.constants, "constexpr")
    whole = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if name not in case.constants and types[name] != "fp32"
    }
    began = time.perf_counter()
    options = {"num_warps": case.warps, "num_stages": case.stages}
    compiled = triton.compile(
        ASTSource(case.kernel, types, dict(case.constants), whole), target=TARGET, options=options
    )
    seconds = time.perf_counter() - began
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = _tool("cuobjdump", "--dump-resource-usage", file.name), _tool("nvdisasm", "-c", file.name)
    found = _RESOURCES.search(usage)
    if found is None:
        raise RuntimeError(f"expected cuobjdump to tell registers and stack, found: {usage[:500]}")
    return Compiled(
        kernel=case.kernel.__name__,
        of=case.of,
        constants=case.constants,
        warps=case.warps,
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
    for case in (*expert_cases(parser.parse_args().tokens), *attention_cases(), *step_cases()):
        compiled = compile_case(case)
        print(json.dumps(asdict(compiled)), flush=True)
        spills |= compiled.stack_bytes > 0
    return int(spills)


if __name__ == "__main__":
    sys.exit(main())
