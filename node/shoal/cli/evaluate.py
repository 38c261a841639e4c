"""`shoal eval`: how good a model is on everything that the task holds out."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from shoal.checkpoint import read_model
from shoal.cli.options import with_settings
from shoal.cli.terminal import JsonFile, write_json
from shoal.data.loading import load_task, local_data
from shoal.data.task import Place
from shoal.errors import CheckpointError, DataError
from shoal.learner import Learner, initial_state
from shoal.settings import Settings
from shoal.trainer.device import choose_device
from shoal.vector import FlatModel


@with_settings(only=("task", "data_dir", "download", "device", "threads", "seed"))
def command(
    settings: Settings,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A safetensors file of `shoal export`, or any other.")],
    json_file: JsonFile = None,
) -> None:
    """Measure a model's accuracy and loss on the whole held-out split of a task, that of all nodes together."""
    tensors, about = read_model(model)
    torch.set_num_threads(settings.threads)
    task = load_task(settings.task)
    flat, _ = initial_state(task, settings.seed, choose_device(settings.device))
    _fill(flat, tensors, f"{model} does not fit task {task.name}")
    everything = Place(0, 1, "iid", settings.seed, Path(settings.data_dir), settings.download)
    learner = Learner(task, local_data(task, everything), flat, batch=1, seed=settings.seed, shard=0)
    counts = learner.evaluate(flat.state())
    if counts.total == 0:
        raise DataError(f"task {task.name} holds no sample out, so there is nothing to measure {model} on")
    typer.echo(f"{task.name}: {counts.total:,} held-out samples")
    typer.echo("accuracy -" if counts.accuracy is None else f"accuracy {counts.accuracy:.4f} ({counts.right:,} right)")
    typer.echo(f"loss {counts.loss:.4f}")
    result = {"model": str(model), "task": task.name, "samples": counts.total, "right": counts.right}
    write_json(json_file, {**result, "accuracy": counts.accuracy, "loss": counts.loss, "about": about})


def _fill(flat: FlatModel, tensors: dict[str, Tensor], refusal: str) -> None:
    """Put `tensors` into the module. Raises CheckpointError, naming what is missing, too much, or of another shape."""
    own = flat.module.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in own]
    wrong += [
        f"{name} is {_by(tensors[name])}, expected {_by(tensor)}"
        for name, tensor in own.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{refusal}: {', '.join(wrong[:3])}{more}; give the --task that it was trained on")
    flat.module.load_state_dict(tensors)


def _by(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
