"""`shoal export` and `shoal eval`: from a state folder to plain torch, and to a number."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shoal.checkpoint import Checkpoint, read_model, write, write_model
from shoal.cli import main
from shoal.data.loading import load_task, task_document
from shoal.learner import initial_state
from shoal.settings import Settings

Output = pytest.CaptureFixture[str]

MY_TASK = """
import shoal, torch
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.one, self.two = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(self.one(self.norm(x)))

class TiedTask(shoal.Task):
    def model(self):
        return Tied()

    def data(self, place):
        return place.split(torch.randn(50, 4), torch.arange(50) % 4)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in; what a task file adds to sys is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for variable in [v for v in os.environ if v.startswith("SHOAL_")]:
        monkeypatch.delenv(variable)
    return tmp_path


def refusal(capsys: Output, *args: str) -> str:
    assert main(list(args)) == 2
    return capsys.readouterr().err


def digits_model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def leave_checkpoint(task_name: str, state_dir: Path) -> Tensor:
    """A checkpoint as a trainer of that task would leave it; returns its state."""
    task = load_task(task_name)
    model, state = initial_state(task, seed=3)
    write(
        state_dir / "checkpoint.safetensors",
        Checkpoint(
            task_document=task_document(task, model.layout),
            run_document=Settings().run_document(),
            node_id="a-00ff00",
            incarnation=1,
            step=7,
            gradients=7,
            round=0,
            state=state,
            memory={},
            rng={},
            settlement={},
        ),
    )
    return state


# --- export ---------------------------------------------------------------------------------------------------------


def test_the_mean_model_loads_by_the_two_lines_that_are_printed(folder: Path, capsys: Output) -> None:
    trained = digits_model()
    about = {"members": ["a", "b"], "held_out_accuracy": 0.975}
    write_model(folder / "state" / "model.safetensors", trained.state_dict(), about)
    assert main(["export", "state", "--out", "mine.safetensors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "wrote mine.safetensors: 4 tensors, 9,610 values; mean of 2 nodes, held-out accuracy 0.9750"
    model = digits_model()
    exec("\n".join(lines[-2:]), {"model": model})
    assert torch.equal(model(torch.ones(1, 64)), trained(torch.ones(1, 64)))


def test_the_default_file_is_in_the_current_folder(folder: Path) -> None:
    write_model(folder / "state" / "model.safetensors", digits_model().state_dict(), {})
    assert main(["export", "state"]) == 0
    assert (folder / "model.safetensors").is_file()


def test_without_a_mean_model_the_own_one_is_offered(folder: Path, capsys: Output) -> None:
    leave_checkpoint("digits", folder / "state")
    message = refusal(capsys, "export", "state")
    assert "state has no model.safetensors: the nodes form the mean model at the end of a run" in message
    assert "--checkpoint" in message


def test_an_own_model_is_taken_from_the_checkpoint(folder: Path, capsys: Output) -> None:
    state = leave_checkpoint("digits", folder / "state")
    assert main(["export", "state", "--checkpoint", "--task", "digits"]) == 0
    assert "own model of a-00ff00 at step 7, not the mean of the shoal" in capsys.readouterr().out
    model = digits_model()
    model.load_state_dict(load_file("model.safetensors"))
    assert torch.equal(torch.cat([p.detach().reshape(-1) for p in model.parameters()]), state)


def test_tied_weights_and_integer_buffers_come_from_the_task(folder: Path) -> None:
    (folder / "tied_task.py").write_text(MY_TASK)
    leave_checkpoint("tied_task.py:TiedTask", folder / "state")
    assert main(["export", "state", "--checkpoint", "--task", "tied_task.py:TiedTask"]) == 0
    tensors, about = read_model(folder / "model.safetensors")
    load_task("tied_task.py:TiedTask").model().load_state_dict(tensors)
    assert torch.equal(tensors["one.weight"], tensors["two.weight"])
    assert tensors["norm.num_batches_tracked"].dtype == torch.int64
    assert (about["node"], about["step"]) == ("a-00ff00", 7)


def test_a_checkpoint_of_another_task_is_refused(folder: Path, capsys: Output) -> None:
    leave_checkpoint("digits", folder / "state")
    assert 'name: ours "quadratic", theirs "digits"' in refusal(
        capsys, "export", "state", "--checkpoint", "--task", "quadratic"
    )


def test_a_folder_that_is_no_state_folder_is_refused(folder: Path, capsys: Output) -> None:
    assert "nowhere is not a folder" in refusal(capsys, "export", "nowhere")
    (folder / "empty").mkdir()
    assert "empty has neither model.safetensors nor checkpoint.safetensors" in refusal(capsys, "export", "empty")
    assert "no checkpoint at empty" in refusal(capsys, "export", "empty", "--checkpoint")


def test_a_place_that_cannot_be_written_is_one_line(folder: Path, capsys: Output) -> None:
    write_model(folder / "state" / "model.safetensors", {"weight": torch.ones(1)}, {})
    (folder / "file").touch()
    message = refusal(capsys, "export", "state", "--out", "file/model.safetensors")
    assert message.startswith("error: --out file/model.safetensors: cannot be written: ")


# --- eval -----------------------------------------------------------------------------------------------------------


def test_a_model_is_measured_on_the_whole_held_out_split(folder: Path, capsys: Output) -> None:
    model = digits_model()
    for p in model.parameters():
        nn.init.zeros_(p)  # every output is 0: the first class wins, the loss is log 10
    write_model(folder / "m.safetensors", model.state_dict(), {"task": "digits"})
    assert main(["eval", "m.safetensors", "--task", "digits", "--device", "cpu", "--json", "out.json"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("digits: 360 held-out samples\naccuracy 0.")
    assert "loss 2.3026" in out
    result = json.loads(Path("out.json").read_text())
    assert result["accuracy"] == result["right"] / 360
    assert 20 < result["right"] < 55
    assert (result["model"], result["task"], result["about"]) == ("m.safetensors", "digits", {"task": "digits"})


def test_the_split_is_the_same_whatever_the_seed(folder: Path) -> None:
    write_model(folder / "m.safetensors", initial_state(load_task("digits"), 0)[0].module.state_dict(), {})
    for seed in ("0", "5"):
        assert main(["eval", "m.safetensors", "--seed", seed, "--json", f"{seed}.json"]) == 0
    assert json.loads(Path("0.json").read_text())["loss"] == json.loads(Path("5.json").read_text())["loss"]


def test_a_task_without_accuracy_has_a_loss(folder: Path, capsys: Output) -> None:
    write_model(folder / "m.safetensors", {"x": torch.zeros(20)}, {})
    assert main(["eval", "m.safetensors", "--task", "quadratic", "--json", "out.json"]) == 0
    assert "accuracy -\n" in capsys.readouterr().out
    result = json.loads(Path("out.json").read_text())
    assert result["accuracy"] is None
    assert result["loss"] > 0


def test_a_model_that_does_not_fit_names_what_differs(folder: Path, capsys: Output) -> None:
    state = digits_model().state_dict()
    wrong = {
        "0.weight": torch.ones(3, 64),
        "0.bias": state["0.bias"],
        "2.weight": state["2.weight"],
        "extra": torch.ones(1),
    }
    save_file(wrong, "m.safetensors")
    assert refusal(capsys, "eval", "m.safetensors") == (
        "error: m.safetensors does not fit task digits: 2.bias is missing, extra is unknown,"
        " 0.weight is 3x64, expected 128x64; give the --task that it was trained on\n"
    )


def test_a_model_of_many_other_names_is_told_briefly(folder: Path, capsys: Output) -> None:
    save_file({f"layer{k}": torch.ones(1) for k in range(100)}, "m.safetensors")
    message = refusal(capsys, "eval", "m.safetensors")
    assert "and 101 more" in message
    assert len(message) < 300


def test_a_checkpoint_is_no_model(folder: Path, capsys: Output) -> None:
    leave_checkpoint("digits", folder / "state")
    message = refusal(capsys, "eval", "state/checkpoint.safetensors")
    assert "is a checkpoint, expected a model; make one: shoal export state --checkpoint" in message


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["missing.safetensors"], "missing.safetensors cannot be read: No such file"),
        (["m.safetensors", "--task", "nothing"], "unknown task 'nothing'"),
        (["m.safetensors", "--device", "cuda:99"], "device cuda:99 is not there"),
    ],
)
def test_what_is_not_there_is_one_line(args: list[str], message: str, folder: Path, capsys: Output) -> None:
    write_model(folder / "m.safetensors", digits_model().state_dict(), {})
    assert message in refusal(capsys, "eval", *args)
