"""Every error that a user or a peer can cause says what was expected, what came, and from whom: by walking the classes
and every place that raises one."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import shoal
import shoal_coordinator
from shoal import errors

TREE = {
    "ShoalError": {
        "UserError": {"SettingsError", "TaskError", "DataError", "TopologyError", "CheckpointError", "PortInUse"},
        "PeerError": {"Mismatch", "BadVector", "BadFrame"},
        "Diverged": set(),
        "MemberLost": set(),
        "Deadlock": set(),
    }
}
SOURCES = [Path(package.__path__[0]) for package in (shoal, shoal_coordinator)]
PEERS = ("PeerError", "Mismatch", "BadVector", "BadFrame")


class Raise(NamedTuple):
    """A place that makes an error."""

    place: str
    error: str
    call: ast.Call

    @property
    def values(self) -> int:
        """Parts of its message that are found at run time."""
        return sum(isinstance(node, ast.FormattedValue) for node in ast.walk(self.call)) + sum(
            not isinstance(argument, (ast.Constant, ast.JoinedStr, ast.BinOp)) for argument in self.call.args
        )


def sources() -> list[tuple[Path, ast.Module]]:
    """Every file that was written by hand, read as Python."""
    paths = sorted(path for source in SOURCES for path in source.rglob("*.py") if "v1" not in path.parts)
    return [(path, ast.parse(path.read_text())) for path in paths]


def classes() -> dict[str, type[errors.ShoalError]]:
    """All that are in the tree, wherever they are defined."""
    for path, tree in sources():
        bases = {ast.unparse(base) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases}
        if bases & {name for name in vars(errors) if name.endswith("Error")}:
            root = next(source for source in SOURCES if path.is_relative_to(source))
            importlib.import_module(".".join(path.relative_to(root.parent).with_suffix("").parts))

    def below(cls: type[errors.ShoalError]) -> Iterator[type[errors.ShoalError]]:
        yield cls
        for one in cls.__subclasses__():
            yield from below(one)

    return {cls.__name__: cls for cls in below(errors.ShoalError) if cls.__module__.startswith("shoal")}


def raises(names: set[str]) -> list[Raise]:
    """Each call of one of those classes in the sources."""
    return [
        Raise(f"{path.name}:{node.lineno}", node.func.id, node)
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
    ]


ALL = classes()
PLACES = raises(set(ALL))


def test_the_tree_is_that_of_the_documentation() -> None:
    for parent, children in TREE["ShoalError"].items():
        assert ALL[parent].__bases__ == (errors.ShoalError,)
        assert {cls.__name__ for cls in ALL[parent].__subclasses__()} >= children
        assert parent in str(errors.__doc__)
        assert all(child in str(errors.__doc__) for child in children)


def test_whose_fault_it_is_decides_the_exit_code() -> None:
    for name, cls in ALL.items():
        user = issubclass(cls, errors.UserError)
        assert (cls.exit_code == 2) == user, f"{name} is {'' if user else 'not '}a user's fault"


def test_every_class_is_raised_somewhere() -> None:
    raised = {place.error for place in PLACES}
    assert {"UserError", "SettingsError", "TaskError", "DataError", "TopologyError", "CheckpointError"} <= raised
    assert set(PEERS) <= raised
    assert len(PLACES) > 100


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place.place} {place.error}")
def test_each_place_gives_one_message_with_what_was_found(place: Raise) -> None:
    """A message is there; and unless it can be about one thing only, it holds what was found at run time."""
    assert place.call.args, f"{place.place}: {place.error} without a message"
    words = "".join(
        str(node.value) for node in ast.walk(place.call.args[0]) if isinstance(node, ast.Constant) and node.value
    )
    assert place.values > 0 or len(words.split()) >= 8, f"{place.place}: {words!r} says nothing of what came"


@pytest.mark.parametrize(
    "place", [place for place in PLACES if place.error in PEERS], ids=lambda place: f"{place.place} {place.error}"
)
def test_what_a_peer_has_done_is_told_with_a_value(place: Raise) -> None:
    assert place.values > 0, f"{place.place}: {ast.unparse(place.call)}"
