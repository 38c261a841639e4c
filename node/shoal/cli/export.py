"""`shoal export`: the trained model as a file that plain torch loads."""

from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from shoal.checkpoint import read, read_model, write_model
from shoal.cli.options import with_settings
from shoal.cli.terminal import printable
from shoal.data.loading import load_task, task_document
from shoal.errors import UserError
from shoal.learner import initial_state
from shoal.settings import Settings

MEAN_MODEL, CHECKPOINT = "model.safetensors", "checkpoint.safetensors"
"""Names in a state folder, as the trainer writes them."""

Model = tuple[dict[str, Tensor], dict[str, Any]]
"""(state dict, what is known about it)."""


@with_settings(only=("task",))
def command(
    settings: Settings,
    state_dir: Annotated[Path, typer.Argument(metavar="STATE_DIR", help="A node's state folder.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write it.")] = Path(MEAN_MODEL),
    from_checkpoint: Annotated[
        bool, typer.Option("--checkpoint", help="Take this node's own model from its checkpoint; needs its --task.")
    ] = False,
) -> None:
    """Write the mean model that the nodes formed at the end of the run, or a node's own, for plain torch."""
    if not state_dir.is_dir():
        raise UserError(f"{state_dir} is not a folder; give the --state-dir of a node")
    tensors, about = _own_model(state_dir, settings.task) if from_checkpoint else _mean_model(state_dir)
    try:
        write_model(out, tensors, about)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror or error}") from error
    values = sum(tensor.numel() for tensor in tensors.values())
    typer.echo(f"wrote {out}: {len(tensors)} tensors, {values:,} values{_origin(about)}")
    typer.echo("\nfrom safetensors.torch import load_file")
    typer.echo(f"model.load_state_dict(load_file({str(out)!r}))")


def _mean_model(state_dir: Path) -> Model:
    path = state_dir / MEAN_MODEL
    if path.exists():
        return read_model(path)
    if not (state_dir / CHECKPOINT).exists():
        raise UserError(f"{state_dir} has neither {MEAN_MODEL} nor {CHECKPOINT}; give the --state-dir of a node")
    raise UserError(
        f"{state_dir} has no {MEAN_MODEL}: the nodes form the mean model at the end of a run\n"
        "--checkpoint exports this node's own model, as of its last checkpoint"
    )


def _own_model(state_dir: Path, task_name: str) -> Model:
    """The task gives what a vector has not: the names of tied tensors, and integer buffers."""
    task = load_task(task_name)
    precision = read(state_dir / CHECKPOINT).run_document.get("precision", "f32")
    model, _ = initial_state(task, seed=0, precision=precision)
    saved = read(state_dir / CHECKPOINT, task_document=task_document(task, model.layout))
    about = {"task": task_name, "run": saved.run_document, "node": saved.node_id, "step": saved.step}
    return model.state_dict(saved.state), about


def _origin(about: dict[str, Any]) -> str:
    if "node" in about:
        return f"; own model of {printable(about['node'])} at step {about.get('step')}, not the mean of the shoal"
    accuracy, members = about.get("held_out_accuracy"), about.get("members")
    text = f"; mean of {len(members)} nodes" if isinstance(members, list) else ""
    return text + (f", held-out accuracy {accuracy:.4f}" if isinstance(accuracy, float) else "")
