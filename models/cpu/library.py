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
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.c")
SWITCH = "HERD_CPU_KERNELS"
_COMPILERS = ("cc", "gcc", "clang")
# Not -ffast-math: a library linked with it makes its process round small numbers to zero, in torch's operators, too.
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-std=gnu11", "-shared", "-fPIC")
_COMPILE_S = 60.0
_LOG = logging.getLogger(__name__)


@cache
def load_library() -> ctypes.CDLL | None:
    """Return the kernels, compiled at the first call on a machine; None: they are switched off or do not compile.

    Cost: two seconds when it compiles, a millisecond when it finds the library in the cache.
    """
    if os.environ.get(SWITCH, "1") == "0":
        return None
    try:
        return _declare(ctypes.CDLL(str(_compiled())))
    except (OSError, subprocess.SubprocessError) as error:
        _LOG.info("steps of few tokens run on torch's operators, which are slower: %s", error)
        return None


def loaded_library() -> ctypes.CDLL:
    """Return the kernels where they are known to be there."""
    library = load_library()
    assert library is not None, "is_supported said that there are kernels"
    return library


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    for name in ("herd_linear", "herd_experts", "herd_attention"):
        function = getattr(library, name)
        function.argtypes = (ctypes.c_void_p, ctypes.c_long)
        function.restype = None
    library.herd_has_int8.argtypes = ()
    library.herd_has_int8.restype = ctypes.c_long
    return library


def _compiled() -> Path:
    """Return the library's path; compile it if the cache has none of this source for this processor.

    Raises:
        OSError: there is no compiler, or nowhere to write.
        subprocess.SubprocessError: it fails or hangs.
    """
    source = SOURCE.read_bytes()
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise FileNotFoundError(f"expected a C compiler ({', '.join(_COMPILERS)}), found none: install one")
    key = hashlib.sha256(b"\0".join((source, _processor().encode(), compiler.encode(), " ".join(_FLAGS).encode())))
    path = _cache_folder() / f"kernels-{key.hexdigest()[:16]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            command = [compiler, *_FLAGS, "-o", str(made), str(SOURCE), "-lm", "-lpthread"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_S, check=False)
            if done.returncode:
                raise subprocess.SubprocessError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")
            made.replace(path)  # at once: several processes may start together
    return path


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "herd"


def _processor() -> str:
    """Return what decides which instructions there are: a home folder may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), "")
