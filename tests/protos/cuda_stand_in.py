"""The stand-in for NVIDIA's driver: compiled, and put in the driver's place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protos import cuda_driver, device_memory
from protos.device_memory import DeviceSegment
from tests.router.live_transport import wait_until

SOURCE = Path(__file__).with_name("cuda_stand_in.c")


def compile_stand_in(folder: Path) -> Path:
    """Return the library."""
    library = folder / "libcuda_stand_in.so"
    command = ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", str(library), str(SOURCE)], check=True, timeout=60)
    return library


def install(library: str, patch=setattr) -> None:
    """Let this process take the host for a card: its memory is what the stand-in hands out."""
    patch(cuda_driver, "LIBRARY", library)
    patch(DeviceSegment, "takes", staticmethod(lambda device: True))
    cuda_driver.load_driver.cache_clear()


@contextmanager
def host_as_card(library: str, monkeypatch) -> Iterator[None]:
    """Take the host for a card while it is entered; in the end nothing of it may be mapped any more."""
    install(library, monkeypatch.setattr)
    monkeypatch.setattr(device_memory, "_UNMAP_S", 600.0)  # what is freed within a test was freed for a reason
    yield
    assert wait_until(lambda: num_mapped() == 0)
    cuda_driver.load_driver.cache_clear()


def num_mapped(pid: int | str = "self") -> int:
    """Count the segments of the stand-in's memory that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return sum(1 for line in lines if line.endswith("/memfd:card (deleted)"))


if __name__ == "__main__":
    from experts.__main__ import main

    install(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
