"""GPU kinds as numbers, and how many of one kind there are."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from protos.errors import BadConfig

GPUS_PER_NODE = 8
"""GPUs of a node, unless it is said."""
MOST_DEVICES = 64
"""Devices of a plan, at most: the search takes the square of their number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One accelerator and its way to the others; or the processor and memory of one machine."""

    name: str
    memory_bytes: float
    """As its maker counts: drivers show some more for some kinds, and never less than 97 %."""
    memory_bytes_per_s: float
    flops: float
    """Dense bf16, per second."""
    link_bytes_per_s: float
    """To the others of its node, each way."""
    network_bytes_per_s: float = 50e9
    """To other nodes, each way: 400 Gb/s. A guess: it is the cluster's, not the GPU's."""
    is_cpu: bool = False
    source: str = ""
    """Where these figures come from."""


_SHEET = "data sheet of {}"
# Arithmetic without sparsity; of a link, half of what sheets give for both ways together.
A100 = Device(
    name="a100",
    memory_bytes=80e9,
    memory_bytes_per_s=2.039e12,
    flops=312e12,
    link_bytes_per_s=300e9,
    network_bytes_per_s=25e9,
    source=_SHEET.format("A100 SXM 80 GB"),
)
H100 = Device(
    name="h100",
    memory_bytes=80e9,
    memory_bytes_per_s=3.35e12,
    flops=989e12,
    link_bytes_per_s=450e9,
    source=_SHEET.format("H100 SXM 80 GB"),
)
H200 = Device(
    name="h200",
    memory_bytes=141e9,
    memory_bytes_per_s=4.8e12,
    flops=989e12,
    link_bytes_per_s=450e9,
    source=_SHEET.format("H200 SXM 141 GB"),
)
B200 = Device(
    name="b200",
    memory_bytes=180e9,
    memory_bytes_per_s=7.7e12,
    flops=2250e12,
    link_bytes_per_s=900e9,
    source=_SHEET.format("HGX B200 180 GB"),
)
L40S = Device(
    name="l40s",
    memory_bytes=48e9,
    memory_bytes_per_s=864e9,
    flops=362e12,
    link_bytes_per_s=32e9,
    network_bytes_per_s=12.5e9,
    source=_SHEET.format("L40S 48 GB, PCIe 4 x16"),
)
CPU = Device(
    name="cpu",
    memory_bytes=0,
    memory_bytes_per_s=49e9,
    flops=960e9,
    link_bytes_per_s=24e9,
    network_bytes_per_s=1.25e9,
    is_cpu=True,
    source="loops of C, two cores of an AMD EPYC with AVX-512 (docs/log.md)",
)
DEVICES = {device.name: device for device in (A100, H100, H200, B200, L40S, CPU)}
GPUS = {name: device for name, device in DEVICES.items() if not device.is_cpu}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """Devices of one kind, in nodes of equal size."""

    device: Device
    nodes: int
    per_node: int

    @property
    def num_devices(self) -> int:
        """Count them."""
        return self.nodes * self.per_node

    def node_of(self, index: int) -> int:
        """Return the node that a device is in; devices are numbered through all nodes."""
        return index // self.per_node

    @property
    def text(self) -> str:
        """Return it as it is written in a command."""
        nodes = f"{self.nodes}x" if self.nodes > 1 and not self.device.is_cpu else ""
        count = self.num_devices if self.device.is_cpu else self.per_node
        return f"{nodes}{count}x{self.device.name}"

    def times(self, factor: int) -> Fleet:
        """Return one with so many times the devices: in the node as long as they fit there, then in more nodes."""
        total = self.num_devices * factor
        if self.nodes == 1 and total <= GPUS_PER_NODE and not self.device.is_cpu:
            return replace(self, per_node=total)
        per_node = self.per_node if self.nodes > 1 or self.device.is_cpu else GPUS_PER_NODE
        return replace(self, nodes=-(-total // per_node), per_node=per_node)


def parse_fleet(text: str, memory_bytes: int | None = None) -> Fleet:
    """Return what a text such as h100, 8xh100, 2x8xh200 or cpu stands for.

    Args:
        text: [[nodes x] number x] kind. A number above 8 without nodes is spread over nodes of 8; each cpu is a node.
        memory_bytes: of each device, where it is not its kind's; a cpu needs it.

    Raises:
        BadConfig: it is none, or a cpu without memory.
    """
    match = re.fullmatch(r"(?:(?:(\d+)x)?(\d+)x)?([a-z][a-z0-9]*)", text.strip().lower())
    if match is None or match[3] not in DEVICES:
        raise BadConfig(
            f"--gpus: expected a kind, a number of them, or nodes of a number, such as h100, 8xh100 or 2x8xh200, "
            f"found {text!r}; kinds are {', '.join(DEVICES)}"
        )
    device, nodes, count = DEVICES[match[3]], int(match[1] or 1), int(match[2] or 1)
    if not 1 <= nodes * count <= MOST_DEVICES:
        raise BadConfig(
            f"--gpus: expected 1 to {MOST_DEVICES} in all, found {nodes * count}; plan a part, and have several of it"
        )
    if memory_bytes is not None:
        device = replace(device, memory_bytes=memory_bytes)
    if not device.memory_bytes:
        raise BadConfig("--memory: expected the memory of each machine, found none; for example --memory 16GiB")
    if device.is_cpu:
        return Fleet(device=device, nodes=nodes * count, per_node=1)
    if match[1] is None and count > GPUS_PER_NODE:
        if count % GPUS_PER_NODE:
            raise BadConfig(
                f"--gpus: expected whole nodes of {GPUS_PER_NODE}, found {count}; write nodes of another size as "
                f"2x{count // 2}x{device.name}"
            )
        nodes, count = count // GPUS_PER_NODE, GPUS_PER_NODE
    return Fleet(device=device, nodes=nodes, per_node=count)
