"""Writes node/shoal/v1 from proto/, or with --check tells whether it would differ."""

import filecmp
import os
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
GENERATED = ROOT / "node"


def generate(out: Path) -> list[Path]:
    """Runs protoc over every file of proto/; returns what it wrote, relative to `out`."""
    sources = [str(p.relative_to(PROTO)) for p in sorted(PROTO.rglob("*.proto"))]
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where mypy's plugin lies
    outputs = [f"--{name}_out={out}" for name in ("python", "grpc_python")]
    outputs += [f"--{name}_out=quiet:{out}" for name in ("mypy", "mypy_grpc")]
    if protoc.main(["protoc", f"-I{PROTO}", *outputs, *sources]):
        raise SystemExit("protoc failed")
    return sorted(p.relative_to(out) for p in out.rglob("*_pb2*"))


def main() -> int:
    """0 when committed and generated code are the same."""
    if "--check" not in sys.argv[1:]:
        generate(GENERATED)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        fresh = generate(Path(folder))
        committed = sorted(p.relative_to(GENERATED) for p in GENERATED.glob("shoal/v*/*_pb2*"))
        _, differ, missing = filecmp.cmpfiles(folder, GENERATED, sorted({*fresh, *committed}), shallow=False)
    for path in (*differ, *missing):
        print(f"node/{path} is not what proto/ gives; run `make proto`", file=sys.stderr)
    return 1 if differ or missing else 0


if __name__ == "__main__":
    sys.exit(main())
