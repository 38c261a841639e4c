"""Writes dashboards/*.json from the boards beside this file, or with --check tells whether they would differ."""

import json
import sys
from pathlib import Path

from board_coordinator import COORDINATOR
from board_node import NODE
from board_shoal import SHOAL
from board_wire import WIRE
from panels import document

BOARDS = (SHOAL, NODE, WIRE, COORDINATOR)
FOLDER = Path(__file__).resolve().parent / "dashboards"


def main() -> int:
    """0 when what is committed is what would be written."""
    fresh = {f"{board.uid}.json": json.dumps(document(board, BOARDS), indent=1) + "\n" for board in BOARDS}
    if "--check" not in sys.argv[1:]:
        FOLDER.mkdir(exist_ok=True)
        for name, text in fresh.items():
            (FOLDER / name).write_text(text)
        return 0
    there = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    wrong = sorted(name for name in fresh.keys() | there.keys() if fresh.get(name) != there.get(name))
    for name in wrong:
        print(f"compose/grafana/dashboards/{name} is not what its board gives; run `make dashboards`", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
