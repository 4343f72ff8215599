"""Every number of a plan that is not arithmetic on shapes, with where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Origin = Literal["measured", "vendor", "published", "setting", "guess"]
"""measured: by this project, on the machine that `source` names. setting: chosen, and deployed with the plan."""


@dataclass(frozen=True, slots=True)
class Assumption:
    """One of them."""

    what: str
    value: float
    unit: str
    """Empty: a plain number."""
    origin: Origin
    source: str

    def with_value(self, value: float) -> Assumption:
        """Return it with another value, which a plan chose."""
        return Assumption(self.what, value, self.unit, self.origin, self.source)


MEMORY_SHARE = Assumption(
    "part of the memory bandwidth reached",
    0.74,
    "",
    "published",
    "gpt-fast's Mixtral 8x7B, int8, one sequence, one A100; not measured with Herd",
)
FLOPS_SHARE = Assumption(
    "part of the arithmetic reached",
    0.41,
    "",
    "published",
    "vLLM's prefill of Scout, 2.85 M tokens on 8 H200; not measured with Herd",
)
NETWORK_SHARE = Assumption("part of links and network reached", 0.6, "", "guess", "")
HOP_S = Assumption(
    "a dispatch or context step beyond its computing, same node",
    450e-6,
    "s",
    "measured",
    "between processes of one machine with two CPU cores (docs/log.md); a GPU's lane is not built yet",
)
NETWORK_HOP_S = Assumption(
    "the same, to another node", 600e-6, "s", "guess", "the same node's and some 150 us of network and TCP"
)
STEP_S = Assumption("a step beyond its products", 2e-3, "s", "guess", "launches and Python")
CPU_STEP_S = Assumption(
    "a step beyond its products",
    4e-3,
    "s",
    "measured",
    "Python and small operators of a step of 32 sequences, two CPU cores (docs/log.md)",
)
MARGIN = Assumption(
    "part of the memory left free", 0.03, "", "guess", "fragmentation, and what a kind has less than its name says"
)
GPU_PROCESS_BYTES = Assumption(
    "a process on a GPU besides weights, cache and workspace",
    1.0e9,
    "B",
    "guess",
    "CUDA context, libraries' workspaces, captured graphs",
)
PROCESS_BYTES = Assumption(
    "a process in main memory besides weights, cache and workspace",
    370 * 1024**2,
    "B",
    "measured",
    "Python, torch, Ray: 340 to 375 MB with torch 2.13",
)
BUFFER_BYTES = Assumption(
    "what a router or experts keep of messages and products under load",
    200e6,
    "B",
    "measured",
    "the demo model, 16 at once: experts 206 MB, router 109 MB (docs/planning.md)",
)
RAY_BYTES = Assumption(
    "Ray itself and the processes of Serve", 1000 * 1024**2, "B", "measured", "one machine, resident, Ray 2.60"
)
SWAP_SHARE = Assumption(
    "memory for sequences that make room, per byte of cache",
    0.25,
    "",
    "setting",
    "router.host_kv_bytes's default; on a GPU's host, not counted there",
)
STEP_TOKENS = Assumption("prompt tokens of a step", 8192, "", "setting", "router.step_tokens")
CPU_STEP_TOKENS = Assumption("prompt tokens of a step", 2048, "", "setting", "router.step_tokens's default")
SHARD_PAGE_TOKENS = Assumption("tokens of a page on a context shard", 64, "", "setting", "context/segments.py")
