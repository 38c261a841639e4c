"""Bad input: each ends in one or two lines that say what was wrong and what to do, and in nothing lost."""

import asyncio
import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
from nodes_kit import errors, log, shoal_command, shoal_in
from puppet import address_of, puppet, settings_of

from shoal import checkpoint
from shoal.data.loading import load_task, task_document
from shoal.errors import SettingsError
from shoal.folder import StateFolder
from shoal.learner import initial_state
from shoal.settings import Settings

pytestmark = pytest.mark.live

TASKS = """
import torch
from torch import nn
from shoal import Data, Task

class NoTask:
    pass

class NoData(Task):
    def model(self): return nn.Linear(2, 2)
    def data(self, place): return Data(*(torch.zeros(0, *shape) for shape in [(2,), (), (2,), ()]))

"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the command runs, with some tasks in it."""
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


def refused(folder: Path, *args: str) -> str:
    """What `shoal node ARGS` says, after it was checked that it is short and the exit code 2."""
    code, said = shoal_command(folder, "node", "--log-level", "error", "--log", "human", "--device", "cpu", *args)
    assert code == 2, said
    assert said.startswith("error: ")
    assert 1 <= said.count("\n") <= 2
    assert "Traceback" not in said
    return said


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--algorithm", "sgd"], "unknown algorithm 'sgd'; known: ad-psgd, d-psgd, d2"),
        (["--lr", "-0.1"], "lr = -0.1 must be above 0"),
        (["--lr", "nan"], "lr = 'nan' must be a number"),
        (["--listen", "0.0.0.0:0"], "listen = 0.0.0.0:0 is beyond loopback, where anyone could join"),
        (["--listen", "[::]:7000"], "give --tls DIR (`shoal certs` makes one), or --insecure if that is meant"),
        (["--peers", "nowhere"], "peers = 'nowhere' must be HOST:PORT"),
        (["--topology", "rng"], "topology = 'rng' must be complete, ring, "),
        (["--algorithm", "d2", "--mixing", "uniform"], "mixing = 'uniform' must be metropolis, uniform:W ("),
    ],
)
def test_a_setting_that_cannot_be(folder: Path, args: list[str], expected: str) -> None:
    assert expected in refused(folder, *args)
    assert not (folder / "shoal-state").exists(), "it was refused before anything was made"


def test_an_unknown_key_of_the_settings_file(folder: Path) -> None:
    (folder / "shoal.toml").write_text('algoritm = "d2"\n')
    assert refused(folder) == "error: shoal.toml: unknown setting 'algoritm'; did you mean algorithm?\n"


@pytest.mark.parametrize("flag", ["listen", "http"])
def test_a_port_in_use(folder: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = refused(folder, f"--{flag}", address)
    assert address in said
    assert "somebody listens" in said


def test_a_state_folder_in_use_by_another_node(folder: Path) -> None:
    (folder / "shoal-state").mkdir()
    with (folder / "shoal-state" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = refused(folder)
    assert "state folder shoal-state is in use by another node on this machine; give this one a --state-dir" in said
    assert not (folder / "shoal-state" / "incarnation").exists(), "the other's files are as they were"


def test_a_state_folder_that_this_user_may_not_write(folder: Path) -> None:
    (folder / "volume").mkdir(mode=0o500)
    with unprivileged(), pytest.raises(SettingsError) as refused:
        StateFolder(folder / "volume" / "node", "a")
    words = f"state folder {folder}/volume/node cannot be used: Permission denied; give --state-dir a folder that this"
    assert str(refused.value).startswith(words)
    assert "in a container, a volume with its rights" in str(refused.value)


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """As nobody, where these tests run as root: root may write everywhere."""
    me = os.geteuid()
    os.seteuid(65534 if me == 0 else me)
    try:
        yield
    finally:
        os.seteuid(me)


# --- task and data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--task", "missing.py:Mine"], "no task file missing.py in "),
        (["--task", "tasks.py:Missing"], "tasks.py has no class Missing; tasks there: NoData"),
        (["--task", "tasks.py:NoTask"], "tasks.py:NoTask is not a task: write `class NoTask(shoal.Task)`"),
        (["--task", "tasks.py:NoData"], "task NoData: no training sample on this node"),
        (["--task", "digit"], "unknown task 'digit'; known: digits, "),
        (["--task", "digits", "--partition", "labels:11"], "partition labels:11: the data has 10 labels"),
    ],
    ids=["no file", "no class", "no task", "no data", "unknown", "too few labels"],
)
def test_a_task_or_data_that_cannot_be(folder: Path, args: list[str], expected: str) -> None:
    assert expected in refused(folder, *args)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def write_checkpoint(path: Path, settings: Settings) -> None:
    """One of that task and run, as if a node had just begun."""
    task = load_task(settings.task)
    model, state = initial_state(task, settings.seed)
    saved = checkpoint.Checkpoint(
        task_document=task_document(task, model.layout),
        run_document=settings.run_document(),
        node_id="node-000000",
        incarnation=1,
        step=0,
        gradients=0,
        round=0,
        state=state,
        memory={},
        rng={},
        settlement={},
    )
    checkpoint.write(path, saved)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def make_newer(path: Path) -> None:
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    document = json.loads(metadata["shoal.checkpoint"])
    metadata["shoal.checkpoint"] = json.dumps({**document, "format": checkpoint.FORMAT + 1})
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata)


@pytest.mark.parametrize(
    ("spoil", "args", "expected"),
    [
        (cut_short, [], "is cut short: expected "),
        (make_newer, [], f"has format {checkpoint.FORMAT + 1}, this shoal reads up to {checkpoint.FORMAT}"),
        (lambda path: None, ["--task", "digits"], 'is of another task: classes: ours ["0", "1"'),
        (lambda path: None, ["--algorithm", "d2"], 'is of another run: algorithm: ours "d2", theirs "ad-psgd"'),
        (Path.unlink, [], "no checkpoint at "),
    ],
    ids=["cut short", "newer version", "another task", "another run", "missing"],
)
def test_a_checkpoint_that_cannot_be_used(
    folder: Path, spoil: Callable[[Path], None], args: list[str], expected: str
) -> None:
    path = folder / "state" / "checkpoint.safetensors"
    write_checkpoint(path, Settings(task="quadratic"))
    spoil(path)
    before = path.read_bytes() if path.exists() else None
    said = refused(folder, "--task", "quadratic", "--state-dir", "state", "--resume", *args)
    assert expected in said
    assert "state/checkpoint.safetensors" in said
    assert (path.read_bytes() if path.exists() else None) == before


# --- the graph of a synchronous run -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edges", "args", "expected"),
    [
        ("0 1 .5\n1 0 .2\n", {}, "line 2: edge 0 1 again; one line stands for both directions"),
        ("0 1 .6\n0 1 .6\n", {}, "edge 0 1 again"),
        ("0 1 1.2\n", {}, "weight '1.2': expected a number above 0 and at most 1"),
        ("", {}, "is not connected: no path leads from node 0 to 1"),
        ("0 1 .9\n", {"lazy": "never"}, "lambda_n = -0.8000, but d2 diverges unless it is above -0.3333"),
    ],
    ids=["not symmetric", "given twice", "not stochastic", "not connected", "not lazy"],
)
async def test_a_mixing_matrix_that_d2_may_not_use(
    tmp_path: Path, edges: str, args: dict[str, str], expected: str
) -> None:
    graph = tmp_path / "graph"
    graph.write_text(edges)
    run = {"algorithm": "d2", "topology": f"file:{graph}", "mixing": "file" if edges else "metropolis", **args}
    with shoal_in(tmp_path, **run) as shoal:
        node = shoal.start("node", min_nodes=2)
        async with puppet(settings_of(shoal, **run), min_nodes=2) as other:
            await other.meet(await address_of(shoal, node))
            assert await asyncio.to_thread(shoal.codes) == [2]
        (line,) = errors(node)
        assert expected in line
        assert "Traceback" not in log(node)


# --- a run that diverges ----------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    with shoal_in(tmp_path, rounds=20) as shoal:
        node = shoal.start("node")
        assert shoal.codes(node) == [0]
        path = node.folder / "checkpoint.safetensors"
        before = path.read_bytes()
        again = shoal.start("node", resume=True, rounds=1000, lr=1e5, checkpoint_every=1000)
        assert shoal.codes(again) == [4]
        (line,) = errors(again)
        assert "the model has diverged; try a step size below --lr 100000.0" in line
        assert "Traceback" not in log(again)
        assert f"the last checkpoint, from before: {path} (go on with --resume)" in log(again)
        assert path.read_bytes() == before
