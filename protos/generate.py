"""Generates the stubs of every .proto file, or checks that the ones in the tree are what it would generate.

`python -m protos.generate` writes, `--check` compares. The generator is pinned in pyproject.toml to the oldest
version Herd supports at run time, because generated code refuses older runtimes than its generator.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_SERVICES = ("context", "expert", "inference", "weights")


def generate(out: Path) -> list[Path]:
    """Write the stubs of protos/*/v1/*.proto below `out` and return their paths, relative to it.

    Raises:
        SystemExit: protoc refused a file; it has said why.
    """
    from grpc_tools import protoc

    for proto in sorted(_ROOT.glob("protos/*/v1/*.proto")):
        outputs = [f"--python_out={out}", f"--pyi_out={out}"]
        if proto.stem in _SERVICES:
            outputs.append(f"--grpc_python_out={out}")
        if protoc.main(["protoc", f"-I{_ROOT}", *outputs, str(proto.relative_to(_ROOT))]):
            raise SystemExit(f"protoc refused {proto}")
    return sorted(path.relative_to(out) for path in out.glob("protos/*/v1/*_pb2*"))


def main() -> int:
    """Generate, or check with `--check`; returns the exit status."""
    if "--check" not in sys.argv[1:]:
        generate(_ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        fresh = {path: (out / path).read_text() for path in generate(out)}
    in_tree = {path.relative_to(_ROOT): path.read_text() for path in _ROOT.glob("protos/*/v1/*_pb2*")}
    stale = sorted(str(path) for path in fresh.keys() | in_tree.keys() if fresh.get(path) != in_tree.get(path))
    if stale:
        print(f"stale generated files: {', '.join(stale)}: run `make protos`", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
