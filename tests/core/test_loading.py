"""From `--task` to a task, what is said when there is none, and what members compare."""

import ast
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from shoal.data import BY_NAME
from shoal.data.loading import load_task, local_data, task_document
from shoal.data.task import Data, Place, Task
from shoal.documents import differing_keys, fingerprint
from shoal.errors import DataError, TaskError
from shoal.learner import Counts, Learner, initial_state
from shoal.vector import FlatModel

MY_TASK = Path(__file__).parents[2] / "examples" / "my_task.py"


def place(shard: int = 0, shards: int = 1, partition: str = "iid") -> Place:
    return Place(shard, shards, partition, 0, Path("data"), download=False)


# --- loading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BY_NAME)
def test_every_task_of_the_table_loads_under_its_name(name: str) -> None:
    assert load_task(name).name == name


def write(folder: Path, source: str) -> Path:
    path = folder / "mine.py"
    path.write_text(textwrap.dedent(source))
    return path


def test_the_example_of_a_users_task_is_short_and_learns() -> None:
    (cls,) = [node for node in ast.parse(MY_TASK.read_text()).body if isinstance(node, ast.ClassDef)]
    assert cls.end_lineno is not None
    assert cls.end_lineno - cls.lineno + 1 < 30
    task = load_task(f"{MY_TASK}:Tumours")
    model, x = initial_state(task, 0)
    learners = [
        Learner(task, part, model, batch=16, seed=0, shard=i)
        for i, part in enumerate(local_data(task, place(i, 3, "labels:1")) for i in range(3))
    ]
    for _ in range(400):
        x -= 0.5 * torch.stack([learner.gradient(x).g for learner in learners]).mean(0)
    counts = sum((learner.evaluate(x) for learner in learners), start=Counts.nothing())
    assert counts.total == 114
    assert counts.accuracy is not None
    assert counts.accuracy > 0.9


def test_a_task_can_come_from_a_module_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clinic").mkdir()
    (tmp_path / "clinic" / "scans.py").write_text(MY_TASK.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    task = load_task("clinic.scans:Tumours")
    assert (task.name, task.classes) == ("Tumours", ("malignant", "benign"))


def test_a_task_file_can_import_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "names_of_ours.py").write_text("CLASSES = ('left', 'right')")
    path = write(
        tmp_path,
        """
        from names_of_ours import CLASSES
        from shoal import Data, Place, Task
        class Mine(Task):
            classes = CLASSES
            def model(self): ...
            def data(self, place): ...
        """,
    )
    assert load_task(f"{path}:Mine").classes == ("left", "right")


@pytest.mark.parametrize("spec", ["", "digit", "mine.py", ":Mine", "mine.py:"])
def test_an_unknown_task_is_refused_and_the_known_ones_are_named(spec: str) -> None:
    with pytest.raises(TaskError, match=r"known: digits, mnist, .*, or your own as FILE\.py:CLASS") as caught:
        load_task(spec)
    assert repr(spec) in str(caught.value)


def test_a_missing_file_module_or_class_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"no task file .*gone\.py"):
        load_task(f"{tmp_path / 'gone.py'}:Mine")
    with pytest.raises(TaskError, match=r"no module no_such_package\.tasks in .* or among what is installed"):
        load_task("no_such_package.tasks:Mine")
    with pytest.raises(TaskError, match=r"my_task\.py has no class Mine; tasks there: Tumours"):
        load_task(f"{MY_TASK}:Mine")
    path = write(tmp_path, "x = 1")
    with pytest.raises(TaskError, match=r"has no class Mine; tasks there: none"):
        load_task(f"{path}:Mine")


def test_what_is_no_task_or_half_of_one_is_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        from shoal import Task
        class Plain: ...
        class Half(Task):
            def model(self): ...
        class Wants(Task):
            def __init__(self, size): ...
            def model(self): ...
            def data(self, place): ...
        """,
    )
    with pytest.raises(TaskError, match=r"mine\.py:Plain is not a task: write `class Plain\(shoal\.Task\)`"):
        load_task(f"{path}:Plain")
    with pytest.raises(TaskError, match=r"task Half in .*mine\.py lacks data\(\)"):
        load_task(f"{path}:Half")
    with pytest.raises(TaskError, match=r"task Wants: __init__\(\) raised TypeError: .*'size'"):
        load_task(f"{path}:Wants")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "x = 1\ny = undefined_name\n",
            "NameError: name 'undefined_name' is not defined\n  mine.py, line 2: y = undef",
        ),
        ("def f(:\n", "SyntaxError: invalid syntax\n  mine.py, line 1: def f(:"),
        ("import not_installed_here\n", "ModuleNotFoundError: No module named 'not_installed_here'\n  mine.py, line 1"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3\n  mine.py, line 2: sys.exit(3)"),
        ("import json\njson.loads('{')\n", "JSONDecodeError: "),
    ],
)
def test_a_file_that_raises_shows_the_users_line_in_two_lines(tmp_path: Path, source: str, said: str) -> None:
    path = write(tmp_path, source)
    with pytest.raises(TaskError) as caught:
        load_task(f"{path}:Mine")
    message = str(caught.value)
    assert said in message
    assert "mine.py, line" in message
    assert len(message.splitlines()) == 2


def test_data_that_raises_shows_the_users_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        from shoal import Data, Place, Task
        class Mine(Task):
            def model(self): ...
            def data(self, place):
                with open("/no/such/file.csv") as file:
                    return file
        """,
    )
    with pytest.raises(TaskError, match=r"task Mine: data\(\) raised FileNotFoundError") as caught:
        local_data(load_task(f"{path}:Mine"), place())
    assert 'mine.py, line 6: with open("/no/such/file.csv") as file:' in str(caught.value)


def test_too_few_labels_name_the_task() -> None:
    with pytest.raises(DataError, match="task digits: partition labels:11: the data has 10 labels"):
        local_data(load_task("digits"), place(0, 2, "labels:11"))


# --- what members compare -----------------------------------------------------------------------------------------


class Mine(Task):
    """Two classes."""

    classes = ("a", "b")

    def model(self) -> nn.Module:
        return nn.Linear(3, 2)

    def data(self, place: Place) -> Data:
        return place.split(torch.zeros(10, 3), torch.arange(10) % 2)


def document(task: Task) -> dict[str, object]:
    return task_document(task, FlatModel(task.model()).layout)


def test_the_document_says_what_must_be_the_same_and_nothing_else() -> None:
    assert document(Mine()) == {
        "name": "Mine",
        "version": "1",
        "classes": ["a", "b"],
        "parameter weight": "float32 2x3 at 0",
        "parameter bias": "float32 2 at 6",
    }
    assert fingerprint(document(Mine())) == fingerprint(document(Mine()))


def test_another_version_class_order_or_shape_is_another_task() -> None:
    class Newer(Mine):
        name, version = "Mine", "2"

    class Reordered(Mine):
        name, classes = "Mine", ("b", "a")

    class Wider(Mine):
        name = "Mine"

        def model(self) -> nn.Module:
            return nn.Linear(4, 2)

    def differing(other: Task) -> list[str]:
        return [line.split(":")[0] for line in differing_keys(document(Mine()), document(other))]

    assert differing(Newer()) == ["version"]
    assert differing(Reordered()) == ["classes"]
    assert differing(Wider()) == ["parameter bias", "parameter weight"]


def test_a_right_answer_is_where_the_output_is_largest() -> None:
    output = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert Mine().right(output, torch.tensor([1, 0, 0])) == 2
    assert Mine().right(output, torch.rand(3)) is None
    assert Mine().right(output.unsqueeze(2), torch.tensor([1, 0, 0])) is None
