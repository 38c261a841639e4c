"""What a coordinator keeps on disk, so that it goes on after a kill -9: what it adopted, the last answers, what its
rules remember, a parameter server's model. Every file is written whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from shoal.checkpoint import read_model, write_model
from shoal.errors import CheckpointError

ADOPTED, RUN, MODEL = "adopted.json", "run.json", "parameters.safetensors"


class Store:
    """Files in one folder. Raises CheckpointError for what cannot be read, OSError for what cannot be written.

    Answers go round: number k lies where number k - `kept` lay. What rules remember is written before its answer, to
    one of two files in turn, so that the one that belongs to the last whole answer is always there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def save_adopted(self, document: Mapping[str, Any]) -> None:
        """Whose run this is."""
        self._save(ADOPTED, document)

    def load_adopted(self) -> dict[str, Any] | None:
        """What was saved; None if nothing was."""
        return self._load(ADOPTED)

    def save_run(self, document: Mapping[str, Any]) -> None:
        """Who takes part in it."""
        self._save(RUN, document)

    def load_run(self) -> dict[str, Any] | None:
        """What was saved; None if nothing was."""
        return self._load(RUN)

    def save_answer(
        self, number: int, kept: int, answer: Tensor, about: Mapping[str, Any], memory: Mapping[str, Tensor]
    ) -> None:
        """Answer `number` of the run, counted from 0, of which the last `kept` are kept; `memory`: after it."""
        if memory:
            write_model(self.folder / _memory(number), dict(memory), {"number": number})
        path = self.folder / f"answer-{number % kept:02}.safetensors"
        write_model(path, {"answer": answer}, {"number": number, **about})

    def load_answers(self) -> list[tuple[Tensor, dict[str, Any]]]:
        """The last ones, in order and without a hole."""
        found = {}
        for path in sorted(self.folder.glob("answer-*.safetensors")):
            tensors, about = read_model(path)
            found[int(about["number"])] = (tensors["answer"], about)
        last = max(found, default=-1)
        numbers = []
        while last in found:
            numbers.append(last)
            last -= 1
        return [found[number] for number in reversed(numbers)]

    def load_memory(self, number: int) -> dict[str, Tensor]:
        """What was remembered after answer `number`; nothing if that is not there."""
        path = self.folder / _memory(number)
        if not path.exists():
            return {}
        tensors, about = read_model(path)
        return tensors if about["number"] == number else {}

    def save_model(self, x: Tensor, about: Mapping[str, Any]) -> None:
        """A parameter server's."""
        write_model(self.folder / MODEL, {"x": x}, about)

    def load_model(self) -> tuple[Tensor, dict[str, Any]] | None:
        """What was saved; None if nothing was."""
        if not (self.folder / MODEL).exists():
            return None
        tensors, about = read_model(self.folder / MODEL)
        return tensors["x"], about

    def forget_run(self) -> None:
        """Answers, memory and model are of a run that is no more."""
        for pattern in ("answer-*.safetensors", "memory-*.safetensors", MODEL, RUN):
            for path in self.folder.glob(pattern):
                path.unlink()

    def forget(self) -> None:
        """Everything."""
        self.forget_run()
        (self.folder / ADOPTED).unlink(missing_ok=True)

    def _save(self, name: str, document: Mapping[str, Any]) -> None:
        temporary = self.folder / f".{name}.tmp"
        temporary.write_text(json.dumps(document))
        temporary.replace(self.folder / name)

    def _load(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        try:
            document = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}; start with another --state-dir") from None
        if not isinstance(document, dict):
            raise CheckpointError(f"{path} holds no document; start with another --state-dir")
        return document


def _memory(number: int) -> str:
    return f"memory-{number % 2}.safetensors"
