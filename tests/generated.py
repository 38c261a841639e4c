"""Writes node/shoal/v1 from proto/ and docs/metrics.md from its table; with --check tells whether they would differ."""

import filecmp
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from grpc_tools import protoc

from shoal import metric_table

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
GENERATED = ROOT / "node"
METRICS = ROOT / "docs" / "metrics.md"
METRICS_TOP = """\
# Metrics

What `/metrics` of a node and of a coordinator shows. This page is written by `make proto` from the one table in
`node/shoal/metric_table.py`; change that.

A gauge that is not known is NaN; a counter that never counted is 0. A label's values are those given here; `...` are
this node's classes, or its neighbours, of which at most {limit} have series of their own: those whose ids follow its
own. So a shoal of N nodes has some {limit} N such series, not N squared. `shoal_info` says by its labels what runs
here; join it by `instance` to show names: `shoal_step * on (job, instance) group_left (node) shoal_info`.
"""
METRICS_END = """\
## Processes

On Linux `process_cpu_seconds_total`, `process_resident_memory_bytes`, `process_virtual_memory_bytes`,
`process_start_time_seconds`, `process_open_fds` and `process_max_fds` are those of the daemon or the coordinator, and
with `shoal_trainer_` before them those of the trainer. What the whole machine does is told by node_exporter, what a GPU
does by NVIDIA's DCGM exporter.
"""


def generate(out: Path) -> list[Path]:
    """Runs protoc over every file of proto/; returns what it wrote, relative to `out`."""
    sources = [str(p.relative_to(PROTO)) for p in sorted(PROTO.rglob("*.proto"))]
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where mypy's plugin lies
    outputs = [f"--{name}_out={out}" for name in ("python", "grpc_python")]
    outputs += [f"--{name}_out=quiet:{out}" for name in ("mypy", "mypy_grpc")]
    if protoc.main(["protoc", f"-I{PROTO}", *outputs, *sources]):
        raise SystemExit("protoc failed")
    return sorted(p.relative_to(out) for p in out.rglob("*_pb2*"))


def metrics_page() -> str:
    """docs/metrics.md."""
    common = [metric_table.BY_NAME[name] for name in metric_table.IN_COMMON]
    own = [row for row in metric_table.TABLE if row not in common]
    parts = {"Of a node": own, "Of a coordinator": metric_table.OF_COORDINATOR, "Of both": common}
    tables = [f"## {title}\n\n{_table(rows)}" for title, rows in parts.items()]
    return "\n".join((METRICS_TOP.format(limit=metric_table.PEERS_LIMIT), *tables, METRICS_END))


def _table(rows: Iterable[metric_table.Row]) -> str:
    lines = ["| name | kind, unit | what it says | higher means |", "|---|---|---|---|"]
    for row in rows:
        labels = "; ".join(f"{label}: {', '.join(values) or '...'}" for label, values in row.labels.items())
        kind = ", ".join(filter(None, (row.kind, row.unit)))
        lines.append(f"| `{row.name}` | {kind} | {row.help}{f' ({labels})' if labels else ''} | {row.more} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """0 when committed and generated code are the same."""
    if "--check" not in sys.argv[1:]:
        generate(GENERATED)
        METRICS.write_text(metrics_page())
        return 0
    with tempfile.TemporaryDirectory() as folder:
        fresh = generate(Path(folder))
        committed = sorted(p.relative_to(GENERATED) for p in GENERATED.glob("shoal/v*/*_pb2*"))
        _, differ, missing = filecmp.cmpfiles(folder, GENERATED, sorted({*fresh, *committed}), shallow=False)
    for path in (*differ, *missing):
        print(f"node/{path} is not what proto/ gives; run `make proto`", file=sys.stderr)
    stale = not METRICS.exists() or METRICS.read_text() != metrics_page()
    if stale:
        print("docs/metrics.md is not what the table of metrics gives; run `make proto`", file=sys.stderr)
    return 1 if differ or missing or stale else 0


if __name__ == "__main__":
    sys.exit(main())
