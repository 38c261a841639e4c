"""Nodes that die, hang or are stopped: what the others do, what is left on disk, and how it goes on."""

import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gated_task import Gated
from nodes_kit import (
    GATED,
    Shoal,
    assert_one_model,
    errors,
    events,
    is_alive,
    log,
    losses,
    mean_model,
    own,
    shoal_in,
    states,
    trainer,
)

from shoal.checkpoint import Checkpoint, read, read_model
from shoal.data.quadratic import optimum
from shoal.data.task import Place
from shoal.demo.fleet import NodeProcess
from shoal.settings import Settings
from shoal.simulation import Scenario, population, simulate

pytestmark = pytest.mark.live

SUSPECT_AFTER_S = 2.0


def held(folder: Path, gradients: int, **settings: Any) -> dict[str, Any]:
    """Settings of nodes whose gradients wait at a gate after so many."""
    (folder / "gate").write_text(str(gradients))
    return {"task": GATED, "data_dir": folder, "suspect_after_s": SUSPECT_AFTER_S, **settings}


def let_go(folder: Path) -> None:
    (folder / "gate").unlink()


def checkpoint(node: NodeProcess) -> Checkpoint:
    """The one that its result names."""
    result = node.result()
    assert result is not None
    return read(Path(result["checkpoint"]))


def assert_told_in_one_line(node: NodeProcess, *words: str) -> None:
    assert "Traceback" not in log(node)
    (line,) = errors(node)
    assert all(word in line for word in words), line


# --- a member is lost ---------------------------------------------------------------------------------------------


def test_ad_psgd_goes_on_without_a_member_that_was_killed(tmp_path: Path) -> None:
    with shoal_in(tmp_path, rounds=40, **held(tmp_path, 20)) as shoal:
        first, second, victim = shoal.start_all(3)
        shoal.until_step(20, first, second, victim)
        victim.process.kill()
        shoal.until_logged(f"warning: {victim.name}-", first, second)
        shoal.until(lambda: states(first).get(victim.name) == "gone", "the status shows it as gone")
        let_go(tmp_path)
        assert shoal.codes(first, second) == [0, 0]
        assert_one_model([first, second])
        assert len(losses(first)) + len(losses(second)) >= 3 * 40 - 20, "they do its part of the work"


ROUNDS = ["d2", "d-psgd", "allreduce-sgd", "signum", "ef-signsgd"]


@pytest.mark.parametrize("algorithm", ROUNDS)
def test_rounds_go_on_without_a_member_that_was_killed(tmp_path: Path, algorithm: str) -> None:
    with shoal_in(tmp_path, algorithm=algorithm, rounds=10, **held(tmp_path, 5)) as shoal:
        first, victim, third = shoal.start_all(3)
        shoal.until_step(5, first, victim, third)
        victim.process.kill()
        shoal.until_logged("of 2 members: training goes on", first, third)
        let_go(tmp_path)
        assert shoal.codes(first, third) == [0, 0]
        assert_one_model([first, third])
        assert [checkpoint(node).round for node in (first, third)] == [10, 10]
        assert [len(losses(node)) for node in (first, third)] == [10, 10], "the gradient of round 5 is used, once"


@pytest.mark.parametrize("algorithm", ["katyusha-x", "svrg"])
def test_an_epoch_that_a_death_cuts_short_begins_again_from_its_snapshot(tmp_path: Path, algorithm: str) -> None:
    with shoal_in(tmp_path, algorithm=algorithm, rounds=30, lr=0.02, suspect_after_s=SUSPECT_AFTER_S) as shoal:
        first, victim, third = shoal.start_all(3, emulate_compute_s=0.01)
        shoal.until_step(3, first, victim, third)
        victim.process.kill()
        assert shoal.codes(first, third) == [0, 0]
        assert_one_model([first, third])
        assert [checkpoint(node).round for node in (first, third)] == [30, 30]


@pytest.mark.parametrize("algorithm", ["d2", "signum"])
def test_a_member_that_is_stopped_counts_as_gone_and_returns(tmp_path: Path, algorithm: str) -> None:
    with shoal_in(tmp_path, algorithm=algorithm, rounds=20, **held(tmp_path, 5)) as shoal:
        first, second, stopped = shoal.start_all(3)
        shoal.until_step(5, first, second, stopped)
        stopped.process.send_signal(signal.SIGSTOP)
        shoal.until_logged("of 2 members: training goes on", first, second)
        stopped.process.send_signal(signal.SIGCONT)
        shoal.until_logged("of 3 members: ", first, second, stopped)
        shoal.until(lambda: log(first).count("of 3 members: ") == 2, "it is back")
        let_go(tmp_path)
        assert shoal.codes() == [0, 0, 0]
        assert_one_model([first, second, stopped])


@pytest.mark.parametrize("algorithm", ["d2", "allreduce-sgd"])
def test_a_member_that_was_killed_and_starts_again_takes_part_in_the_rounds_that_are_left(
    tmp_path: Path, algorithm: str
) -> None:
    with shoal_in(tmp_path, algorithm=algorithm, rounds=20, **held(tmp_path, 5)) as shoal:
        first, victim, third = shoal.start_all(3)
        shoal.until_step(5, first, victim, third)
        victim.process.kill()
        shoal.until_logged("of 2 members: training goes on", first, third)
        victim = shoal.start("node-2", shard="1/3", min_nodes=3)
        shoal.until_logged("of 3 members: joining the training with the model of node-", victim)
        let_go(tmp_path)
        assert shoal.codes(first, victim, third) == [0, 0, 0]
        assert_one_model([first, victim, third])
        assert checkpoint(victim).round == 20
        assert len(losses(first)) == 20


@pytest.mark.parametrize("dies", ["node", "trainer"])
def test_the_one_node_that_all_others_name_starts_again_and_knows_nobody(tmp_path: Path, dies: str) -> None:
    with shoal_in(tmp_path, rounds=20, **held(tmp_path, 5)) as shoal:
        seed, second, third = shoal.start_all(3)
        shoal.until_step(5, seed, second, third)
        address = shoal.until(seed.facts, "it listens")["address"]
        if dies == "trainer":
            os.kill(trainer(seed), signal.SIGKILL)
        else:
            seed.process.kill()
            seed.process.wait()
            seed = shoal.start("node-1", shard="0/3", min_nodes=3, listen=address, peers="")
        shoal.until(lambda: own(seed).get("incarnation") == 2, "it lives again")
        shoal.until_logged("3 members: training goes on", second, third)
        let_go(tmp_path)
        assert shoal.codes(seed, second, third) == [0, 0, 0]
        assert_one_model([seed, second, third])


# --- half a node dies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["ad-psgd", "d2", "signum"])
def test_a_killed_trainer_is_followed_by_another_that_goes_on_from_the_checkpoint(
    tmp_path: Path, algorithm: str
) -> None:
    with shoal_in(tmp_path, algorithm=algorithm, rounds=20, checkpoint_every=5, **held(tmp_path, 10)) as shoal:
        first, second, victim = shoal.start_all(3)
        shoal.until_step(10, first, second, victim)
        shoal.until((victim.folder / "checkpoint.safetensors").exists, "it has saved")
        os.kill(trainer(victim), signal.SIGKILL)
        shoal.until_logged("the trainer process was killed by SIGKILL", victim)
        shoal.until_logged("starting again from the last checkpoint", victim)
        shoal.until_logged("is gone: left: the trainer process was killed by SIGKILL", first)
        shoal.until(lambda: log(first).count("of 3 members: ") == 2, "it is back")
        let_go(tmp_path)
        assert shoal.codes() == [0, 0, 0]
        assert_one_model([first, second, victim])
        assert victim.result()["own"]["incarnation"] == 2  # type: ignore[index]
        assert len(events(victim, "resumed")) == 1


def test_a_trainer_that_dies_again_and_again_ends_its_node(tmp_path: Path) -> None:
    with shoal_in(tmp_path, **held(tmp_path, 3)) as shoal:
        node = shoal.start("node")
        for life in range(1, 5):
            shoal.until(lambda life=life: own(node).get("incarnation") == life, "it lives")  # type: ignore[misc]
            shoal.until_step(3, node)
            os.kill(trainer(node), signal.SIGKILL)
        assert shoal.codes() == [1]
        assert_told_in_one_line(node, "the trainer process died 4 times in 10 minutes")


def test_a_trainer_that_dies_while_it_loads_is_not_started_again(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with shoal_in(tmp_path, task=f"{tmp_path / 'task.py'}:Task") as shoal:
        node = shoal.start("node")
        assert shoal.codes() == [1]
        assert_told_in_one_line(node, "the trainer process was killed by SIGKILL and said nothing")


def test_a_killed_daemon_takes_its_trainer_along_though_a_gradient_hangs(tmp_path: Path) -> None:
    with shoal_in(tmp_path, **held(tmp_path, 3)) as shoal:
        node = shoal.start("node")
        shoal.until_step(3, node)
        pid = trainer(node)
        mapped = Path(f"/proc/{pid}/maps").read_text()
        assert "memfd:shoal-" in mapped, "what the two share has no name that could stay behind"
        assert "/dev/shm/" not in mapped
        node.process.kill()
        shoal.until(lambda: not is_alive(pid), "its trainer ends")


def test_files_that_cannot_be_written_are_told_and_do_not_stop_the_training(tmp_path: Path) -> None:
    for name in ("checkpoint", "best"):
        (tmp_path / "node" / f"{name}.safetensors").mkdir(parents=True)
    with shoal_in(tmp_path, rounds=20, checkpoint_every=15, eval_every=15) as shoal:
        node = shoal.start("node")
        assert shoal.codes() == [0]
        for name in ("checkpoint", "best"):
            assert f"error: cannot write {tmp_path / 'node' / name}.safetensors: " in log(node)
        assert "finished; no checkpoint was written" in log(node)
        assert "Traceback" not in log(node)
        assert mean_model(node)


def test_a_mean_model_that_cannot_be_written_is_an_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "node" / "model.safetensors").mkdir(parents=True)
    with shoal_in(tmp_path, rounds=20) as shoal:
        node = shoal.start("node")
        assert shoal.codes() == [2]
        assert_told_in_one_line(node, f"cannot write {node.folder / 'model.safetensors'}: Is a directory")
        assert checkpoint(node).step == 20


def test_the_best_model_is_kept_over_a_resume(tmp_path: Path) -> None:
    with shoal_in(tmp_path, task="digits", lr=0.5, rounds=100, eval_every=100) as shoal:
        node = shoal.start("node")
        assert shoal.codes() == [0]
        best = node.folder / "best.safetensors"
        before = read_model(best)[1]
        assert before["held_out_accuracy"] > 0.6
        again = shoal.start("node", resume=True, lr=30, rounds=120, eval_every=5)
        assert shoal.codes(again) == [0]
        after = read_model(best)[1]
        assert (
            min(line["right"] for line in again.history() if line["kind"] == "eval") < before["held_out_accuracy"] * 360
        )
        assert after["held_out_accuracy"] >= before["held_out_accuracy"]


# --- a person stops it ----------------------------------------------------------------------------------------------


def stopping_s(node: NodeProcess, name: str) -> float:
    """Seconds from the signal to the last line, by the node's own log in JSON."""
    lines = [json.loads(line) for line in log(node).splitlines()]
    (asked,) = (line for line in lines if line["message"] == f"{name}: stopping")
    assert lines[-1]["message"].startswith(f"stopped by {name}; checkpoint: {node.folder / 'checkpoint.safetensors'}")
    began, ended = (datetime.datetime.fromisoformat(line["time"]) for line in (asked, lines[-1]))
    return (ended - began).total_seconds()


def test_a_signal_stops_ad_psgd_within_5_s_and_resume_goes_on_from_there(tmp_path: Path) -> None:
    with shoal_in(tmp_path, rounds=40, lr=0.2, **held(tmp_path, 20)) as shoal:
        nodes = shoal.start_all(2, log="json")
        shoal.until_step(20, *nodes)
        for node, number in zip(nodes, (signal.SIGINT, signal.SIGTERM), strict=True):
            os.kill(trainer(node), number)  # a terminal or a service manager sends it to both processes
            node.process.send_signal(number)
        assert shoal.codes(*nodes) == [130, 143]
        assert stopping_s(nodes[0], "SIGINT") < 5
        assert stopping_s(nodes[1], "SIGTERM") < 5
        assert [checkpoint(node).step for node in nodes] == [20, 20]

        let_go(tmp_path)
        again = shoal.start_all(2, resume=True)
        assert shoal.codes(*again) == [0, 0]
        assert_one_model(again)
        assert [events(node, "resumed")[0]["step"] for node in again] == [20, 20]
        assert sum(len(losses(node)) for node in again) == sum(checkpoint(node).gradients for node in again) >= 80
        assert max(losses(again[0])[20:]) < losses(again[0])[0] / 100, "the second life begins where the first ended"


def uninterrupted(settings: Settings, nodes: int) -> torch.Tensor:
    """(d,): the mean model of the same run in virtual time."""
    learners, states = population(settings, nodes)
    return torch.stack(simulate(settings, Scenario(), learners, states).states).mean(0)


@pytest.mark.parametrize("algorithm", [{"algorithm": "d2"}, {"algorithm": "d-psgd", "exchange_every": 4}], ids=str)
def test_rounds_that_all_stop_and_resume_in_the_same_one_end_as_if_nothing_had_been(
    algorithm: dict[str, object], tmp_path: Path
) -> None:
    run = {"rounds": 12, "partition": "labels:4", **algorithm}
    with shoal_in(tmp_path, **run, **held(tmp_path, 6)) as shoal:
        nodes = shoal.start_all(3)
        shoal.until_step(6, *nodes)
        for node in nodes:
            node.process.terminate()
        assert shoal.codes(*nodes) == [143, 143, 143]
        assert [checkpoint(node).round for node in nodes] == [6, 6, 6]

        let_go(tmp_path)
        again = shoal.start_all(3, resume=True)
        assert shoal.codes(*again) == [0, 0, 0]
        assert_one_model(again)
        expected = uninterrupted(Settings(task=GATED, **run), 3)  # type: ignore[arg-type]
        torch.testing.assert_close(mean_model(again[0])["x"], expected, rtol=1e-5, atol=1e-5)


def test_d2_that_resumes_from_unequal_rounds_still_converges(tmp_path: Path) -> None:
    run = {"algorithm": "d2", "partition": "labels:4", "lr": 0.05}
    with shoal_in(tmp_path, **run, **held(tmp_path, 7)) as shoal:
        nodes = shoal.start_all(3, rounds=30, checkpoint_every=5)
        written = nodes[2].folder / "checkpoint.safetensors"
        shoal.until(written.exists, "round 5 is saved")
        old = shutil.copy(written, tmp_path)
        let_go(tmp_path)
        assert shoal.codes(*nodes) == [0, 0, 0]
        assert read(Path(old)).round == 5
        shutil.copy(old, written)
        again = shoal.start_all(3, rounds=200, resume=True)
        assert shoal.codes(*again) == [0, 0, 0]
        assert [checkpoint(node).round for node in again] == [200, 200, 200]
        places = [Place(k, 3, "labels:4", 0, tmp_path, False) for k in range(3)]
        away = mean_model(again[0])["x"] - optimum([Gated().data(place) for place in places]).float()
        assert away.square().mean().sqrt() < 0.3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_trainer_still_loads_ends_both_in_silence(tmp_path: Path, number: signal.Signals) -> None:
    argv = [sys.executable, "-m", "shoal", "node", "--name", "node", "--state-dir", str(tmp_path / "node")]
    (tmp_path / "node").mkdir()
    with (tmp_path / "node" / "log").open("ab") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
    shoal = Shoal(tmp_path)
    shoal.nodes.append(node := NodeProcess("node", tmp_path / "node", process))
    try:
        shoal.until(node.facts, "it listens")
        maps = Path(f"/proc/{trainer(node)}/maps")
        shoal.until(lambda: "libtorch" in maps.read_text(), "its trainer imports torch")
        os.killpg(process.pid, number)  # as a terminal does
        assert shoal.codes() == [128 + number]
    finally:
        shoal.close()
    assert "Traceback" not in log(node)
    assert f"stopped by {number.name}; no checkpoint was written" in log(node)
