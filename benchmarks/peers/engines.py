"""Which engines take part, in which dtypes, with which settings: everything a reader may want to change.

Settings were chosen engine by engine as the fastest found on two AVX-512 cores.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

CORES = os.cpu_count() or 1
HERE = Path(__file__).resolve().parent

# Herd's router and expert processes share the cores. Experts wait while the router computes and the router, but for the
# shared expert, while they do.
ROUTER_THREADS = CORES
EXPERT_THREADS = max(1, CORES // 2)
EXPERT_REPLICAS = 2
STEP_TOKENS = 2048

# vLLM compiled, an engine and a worker process beside the caller, as it comes. How its threads are bound matters more
# than anything else: "auto" leaves a core to the other processes (of two cores, it computes on one), "all" takes every
# core, "iomp" also replaces GNU's OpenMP by Intel's, as vLLM's manual advises. On idle cores "all" and "iomp" are
# fastest, on busy ones "auto": they are engines of one family. In one process (VLLM_ENABLE_V1_MULTIPROCESSING=0)
# nothing binds them, and on busy cores it decoded several times slower.
VLLM_BATCHED_TOKENS = 2048
_ALL_CORES = f"0-{CORES - 1}"
VLLM_BINDINGS = {
    "auto": {"VLLM_CPU_OMP_THREADS_BIND": "auto"},
    "all": {"VLLM_CPU_OMP_THREADS_BIND": _ALL_CORES},
    "iomp": {"VLLM_CPU_OMP_THREADS_BIND": _ALL_CORES, "LD_PRELOAD": "{environment}/lib/libiomp5.so"},
}

LLAMA_BATCH, LLAMA_UBATCH = 2048, 512

# Room for the largest workload several times over, the same for everybody.
KV_GIB = 1
SLOTS = 32
CONTEXT = 1024
# The same for one long prompt, and what vLLM and Herd compute at once of it.
LONG_KV_GIB = 2
LONG_CONTEXT = 65_536 + 64
LONG_STEP_TOKENS = 8192

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """An engine in one dtype."""

    name: str
    """What `--engines` and the results call it."""
    family: str
    """Whose it is: ratios are between families, each at its best variant."""
    is_exact: bool
    """True for float32: its greedy tokens are expected to be the reference's."""
    is_quantized: bool = False
    """True for 8-bit weights: kept apart when a family's best is chosen."""
    environment_name: str
    """The virtual environment it runs in."""
    script: str
    """Its worker."""
    options: tuple[str, ...]
    """The worker's, besides the model."""
    gguf: str | None = None
    """What the model is exported as for it; None: it reads the checkpoint."""
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables; {environment} stands for the folder of its virtual environment."""

    def environment(self, home: Path) -> dict[str, str]:
        """Return the variables, filled in."""
        folder = home / self.environment_name
        return {name: value.format(environment=folder) for name, value in self.variables.items()}

    def command(self, home: Path, checkpoint: Path, python: Path) -> list[str]:
        """Return how to start its worker.

        Args:
            home: folder of the peers' environments and files.
            checkpoint: the model.
            python: the interpreter of Herd's environment.
        """
        interpreter = python if self.environment_name == "herd" else home / self.environment_name / "bin" / "python"
        model = ["--checkpoint", str(checkpoint)]
        if self.gguf is not None:
            model = ["--gguf", str(gguf_path(home, checkpoint, self.gguf))]
        return [str(interpreter), str(HERE / self.script), *model, *self.options]


def gguf_path(home: Path, checkpoint: Path, kind: str) -> Path:
    """Return where the export of a checkpoint lies."""
    return home / "gguf" / f"{checkpoint.name}.{kind}.gguf"


def _herd(
    experts: str, dtype: str, router_threads: int, expert_threads: int, step_tokens: int, is_long: bool
) -> Variant:
    quantized = dtype == "int8"
    options = ["--experts", experts, "--dtype", DTYPES["bf16" if quantized else dtype]]
    options += ["--quantize", "int8"] if quantized else []
    options += ["--router-threads", str(router_threads), "--expert-threads", str(expert_threads)]
    options += ["--replicas", str(EXPERT_REPLICAS), "--step-tokens", str(step_tokens)]
    options += ["--slots", str(SLOTS), *_room(is_long)]
    return Variant(
        name=f"herd-{experts}-{dtype}",
        family=f"herd-{experts}",
        is_exact=dtype == "fp32",
        is_quantized=quantized,
        environment_name="herd",
        script="herd_worker.py",
        options=tuple(options),
    )


def _room(is_long: bool) -> list[str]:
    """Return how long sequences may be and how large the cache is."""
    if is_long:
        return ["--context", str(LONG_CONTEXT), "--kv-gib", str(LONG_KV_GIB)]
    return ["--context", str(CONTEXT), "--kv-gib", str(KV_GIB)]


def _vllm(binding: str, dtype: str, is_long: bool) -> Variant:
    batched_tokens = LONG_STEP_TOKENS if is_long else VLLM_BATCHED_TOKENS
    options = ["--dtype", DTYPES[dtype], "--max-seqs", str(SLOTS), "--batched-tokens", str(batched_tokens)]
    options += _room(is_long)
    return Variant(
        name=f"vllm-{binding}-{dtype}",
        family="vllm",
        is_exact=dtype == "fp32",
        environment_name="vllm",
        script="vllm_worker.py",
        options=tuple(options),
        variables=VLLM_BINDINGS[binding],
    )


def _transformers(dtype: str) -> Variant:
    return Variant(
        name=f"transformers-{dtype}",
        family="transformers",
        is_exact=dtype == "fp32",
        environment_name="transformers",
        script="transformers_worker.py",
        options=("--dtype", DTYPES[dtype], "--threads", str(CORES)),
    )


def _llama(kind: str) -> Variant:
    options = ["--threads", str(CORES), "--batch", str(LLAMA_BATCH), "--ubatch", str(LLAMA_UBATCH)]
    options += ["--seqs", str(SLOTS), "--context", str(CONTEXT)]
    return Variant(
        name=f"llama-{kind}",
        family="llama",
        is_exact=kind == "f32",
        is_quantized=kind == "q8_0",
        environment_name="llama",
        script="llama_cpp_worker.py",
        options=tuple(options),
        gguf=kind,
    )


def all_variants(
    *,
    router_threads: int = ROUTER_THREADS,
    expert_threads: int = EXPERT_THREADS,
    step_tokens: int = STEP_TOKENS,
    herd_quantizes: bool = True,
    is_long: bool = False,
) -> dict[str, Variant]:
    """Return every engine by name, in the order of a round.

    Args:
        router_threads: of Herd's router.
        expert_threads: of each of Herd's expert processes.
        step_tokens: most tokens that Herd's router computes in one step.
        herd_quantizes: whether the checkout of Herd has `--quantize`.
        is_long: whether it is about one long prompt.
    """
    herd_dtypes = ("fp32", "bf16", "int8") if herd_quantizes else ("fp32", "bf16")
    herd = [
        _herd(experts, dtype, router_threads, expert_threads, step_tokens, is_long)
        for dtype in herd_dtypes
        for experts in ("split", "local")
    ]
    vllm = [_vllm(binding, dtype, is_long) for dtype in ("fp32", "bf16") for binding in VLLM_BINDINGS]
    llama = [_llama("f32"), _llama("bf16"), _llama("q8_0")]
    transformers = [_transformers("fp32"), _transformers("bf16")]
    return {variant.name: variant for variant in [*herd, *vllm, *llama, *transformers]}
