"""The kernels as a shared library, made by the machine's own compiler when a process first wants it.

So they use what this very processor has, and nothing has to be shipped for every kind. The library is kept in the
user's cache; without a C compiler, or with HERD_CPU_KERNELS=0, torch's operators do the same work.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.c")
SWITCH = "HERD_CPU_KERNELS"
_COMPILERS = ("cc", "gcc", "clang")
# Not -ffast-math: a library linked with it makes its process round small numbers to zero, in torch's operators, too.
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-std=gnu11", "-shared", "-fPIC")
_COMPILE_S = 60.0
_LOG = logging.getLogger(__name__)


def load_library() -> ctypes.CDLL | None:
    """Return the kernels, compiled at the first call on a machine; None: `why_unavailable` says why.

    Cost: two seconds when it compiles, a millisecond when it finds the library in the cache.
    """
    found = _load()
    return None if isinstance(found, str) else found


def why_unavailable() -> str | None:
    """Return what keeps the kernels from being used; None: nothing does."""
    found = _load()
    return found if isinstance(found, str) else None


def loaded_library() -> ctypes.CDLL:
    """Return the kernels where they are known to be there."""
    library = load_library()
    assert library is not None, "is_supported said that there are kernels"
    return library


@cache
def _load() -> ctypes.CDLL | str:
    """Return the kernels, or why there are none."""
    if os.environ.get(SWITCH, "1") == "0":
        return f"{SWITCH}=0 switches them off"
    try:
        return _declare(_open())
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: there is no home
        _LOG.info("bfloat16 and int8 run on torch's operators, which are slower: %s", error)
        return str(error)


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    for name in ("herd_linear", "herd_experts", "herd_attention"):
        function = getattr(library, name)
        function.argtypes = (ctypes.c_void_p, ctypes.c_long)
        function.restype = None
    library.herd_has_int8.argtypes = ()
    library.herd_has_int8.restype = ctypes.c_long
    return library


def _open() -> ctypes.CDLL:
    """Load the kernels; compile them first if the cache has none of this source for this processor.

    Raises:
        OSError: there is no compiler, or nowhere to write.
        subprocess.SubprocessError: it fails or hangs.
    """
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise FileNotFoundError(f"expected a C compiler, one of {', '.join(_COMPILERS)}, found none: install one")
    parts = (SOURCE.read_bytes(), _processor().encode(), compiler.encode(), " ".join(_FLAGS).encode())
    path = _cache_folder() / f"kernels-{hashlib.sha256(bytes(1).join(parts)).hexdigest()[:16]}.so"
    with suppress(OSError):  # there is none, or a damaged one
        return ctypes.CDLL(str(path))
    with tempfile.TemporaryDirectory(prefix="herd-kernels-") as folder:
        made = Path(folder) / path.name
        _compile(compiler, made)
        with suppress(OSError):  # a read-only home: every process compiles for itself
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f"{path.name}.{os.getpid()}")
            shutil.copyfile(made, beside)
            beside.replace(path)  # at once: several processes may start together
        return ctypes.CDLL(str(made))


def _compile(compiler: str, library: Path) -> None:
    command = [compiler, *_FLAGS, "-o", str(library), str(SOURCE), "-lm", "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_S, check=False)
    if done.returncode:
        raise subprocess.SubprocessError(f"{compiler} refused them: {_first_error(done.stderr)}")


def _first_error(output: str) -> str:
    lines = output.strip().splitlines() or ["it gave no reason"]
    return next((line for line in lines if "error" in line), lines[-1]).strip()


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "herd"


def _processor() -> str:
    """Return what decides which instructions there are: a home folder may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), "")
