"""From `--task` to a task and its data. What the user's code raises is shown as one line of that code."""

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from shoal.data import BY_NAME
from shoal.data.task import Data, Place, Task
from shoal.errors import TaskError, UserError
from shoal.vector import Layout


def load_task(spec: str) -> Task:
    """The task that `spec` names: a key of BY_NAME, FILE.py:CLASS or package.module:CLASS.

    Raises TaskError: unknown name, no such file, module or class (naming the tasks there are), not a Task, methods
    missing, or code that raises (naming the user's line).
    """
    where, colon, class_name = BY_NAME.get(spec, spec).rpartition(":")
    if not colon or not where or not class_name:
        raise TaskError(
            f"unknown task {spec!r}; known: {', '.join(BY_NAME)}, or your own as FILE.py:CLASS or package.module:CLASS"
        )
    module = _load_file(Path(where)) if where.endswith(".py") else _load_module(where)
    cls = getattr(module, class_name, None)
    if cls is None:
        there = ", ".join(_tasks_in(module)) or "none"
        raise TaskError(f"{where} has no class {class_name}; tasks there: {there}")
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        raise TaskError(f"{where}:{class_name} is not a task: write `class {class_name}(shoal.Task)`")
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        raise TaskError(f"task {class_name} in {where} lacks {', '.join(f'{m}()' for m in missing)}")
    try:
        return cls()
    except Exception as error:
        raise user_fault(f"task {class_name}", "__init__()", error, module.__file__) from error


def local_data(task: Task, place: Place) -> Data:
    """This node's data. Raises DataError or TaskError, naming the task, when there is none."""
    try:
        return task.data(place)
    except UserError as error:
        raise type(error)(f"task {task.name}: {error}") from error
    except Exception as error:
        raise user_fault(f"task {task.name}", "data()", error, source_file(task)) from error


def task_document(task: Task, layout: Layout) -> dict[str, Any]:
    """What members must share to average their models, as plain values: no source text, no paths."""
    return {"name": task.name, "version": task.version, "classes": list(task.classes), **layout.document()}


def user_fault(who: str, what: str, error: BaseException, file: str | None) -> TaskError:
    """A TaskError that shows the innermost line of `file` on the way to `error`."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if file is not None and frame.filename == file]
    said = (str(error).strip().splitlines() or [""])[0][:300]
    kind = type(error).__name__
    if isinstance(error, SyntaxError):
        line, text, said = error.lineno, error.text, error.msg
        file = error.filename
    elif own:
        line, text = own[-1].lineno, own[-1].line
    else:
        return TaskError(f"{who}: {what} raised {kind}: {said}")
    name = Path(file or "").name
    return TaskError(f"{who}: {what} raised {kind}: {said}\n  {name}, line {line}: {(text or '').strip()}")


def source_file(task: Task) -> str | None:
    """The file that defines the task's class, where there is one."""
    try:
        return inspect.getsourcefile(type(task))
    except TypeError:  # defined at a prompt
        return None


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise TaskError(f"no task file {path}" + ("" if path.is_absolute() else f" in {Path.cwd()}"))
    file = path.resolve()
    _allow_imports_from(file.parent)
    # Its own name in sys.modules, so that a file called `random.py` shadows nothing.
    name = f"shoal_task_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise user_fault(f"task file {path}", "importing it", error, str(file)) from error
    return module


def _load_module(name: str) -> ModuleType:
    _allow_imports_from(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise TaskError(f"no module {name} in {Path.cwd()} or among what is installed") from error
        raise user_fault(f"module {name}", "importing it", error, _origin(name)) from error
    except (Exception, SystemExit) as error:
        raise user_fault(f"module {name}", "importing it", error, _origin(name)) from error


def _origin(name: str) -> str | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    return None if spec is None else spec.origin


def _allow_imports_from(folder: Path) -> None:
    """As `python FILE.py` would, but last, so that the user's files hide no installed module."""
    if os.fspath(folder) not in sys.path:
        sys.path.append(os.fspath(folder))


def _tasks_in(module: ModuleType) -> list[str]:
    members = inspect.getmembers(module, inspect.isclass)
    return [name for name, cls in members if issubclass(cls, Task) and cls is not Task]
