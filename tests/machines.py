"""The state machines of tests/core, for those who run them for longer."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from hypothesis.stateful import RuleBasedStateMachine

CORE = Path(__file__).parent / "core"
WHERE = {"test_exchange": ("RandomHistories", "RandomHistoriesInTurn"), "test_rounds_histories": ("RoundHistories",)}


def machines() -> list[type[RuleBasedStateMachine]]:
    """All of them."""
    return [getattr(_module(file), name) for file, names in WHERE.items() for name in names]


def _module(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file, CORE / f"{file}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[file] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
