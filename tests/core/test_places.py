"""Which samples a node gets: splits of what all nodes have, its own samples, its own files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from shoal.data.folder import read_folder
from shoal.data.loading import load_task, local_data
from shoal.data.task import Data, Place
from shoal.errors import DataError

INPUTS, TARGETS = torch.arange(101.0).unsqueeze(1), torch.arange(101) % 4


def place(shard: int = 0, shards: int = 1, partition: str = "iid", seed: int = 0, folder: Path = Path("data")) -> Place:
    return Place(shard, shards, partition, seed, folder, download=False)


def rows(tensor: Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in tensor.flatten(1).tolist()}


# --- splits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partition", ["iid", "labels:2", "dirichlet:1", "quantity:1"])
def test_a_split_gives_every_sample_to_one_node_to_train_on_or_to_test_on(partition: str) -> None:
    parts = [place(i, 3, partition).split(INPUTS, TARGETS) for i in range(3)]
    train = torch.cat([part.inputs for part in parts]).flatten().tolist()
    test = torch.cat([part.held_out_inputs for part in parts]).flatten().tolist()
    assert len(test) == 21  # a fifth, rounded up
    assert sorted(train + test) == list(range(101))


def test_targets_stay_with_their_inputs() -> None:
    part = place(1, 3, "labels:2").split(INPUTS, TARGETS)
    assert torch.equal(part.inputs.flatten().long() % 4, part.targets)
    assert torch.equal(part.held_out_inputs.flatten().long() % 4, part.held_out_targets)


def test_every_run_holds_out_the_same_samples() -> None:
    """A model of one run can be tested in another, whatever the seed, the partition and the number of nodes."""
    one = place(0, 1, "iid", seed=0).split(INPUTS, TARGETS)
    others = [place(i, 4, "labels:1", seed=9).split(INPUTS, TARGETS) for i in range(4)]
    assert rows(one.held_out_inputs) == set().union(*(rows(other.held_out_inputs) for other in others))


def test_held_out_samples_are_dealt_out_in_turn() -> None:
    test_x, test_y = torch.arange(7.0).unsqueeze(1), torch.zeros(7, dtype=torch.int64)
    dealt = [place(i, 3).divide(INPUTS, TARGETS, test_x, test_y).held_out_inputs.flatten().tolist() for i in range(3)]
    assert dealt == [[0, 3, 6], [1, 4], [2, 5]]


def test_more_nodes_than_held_out_samples_leave_some_without() -> None:
    parts = [place(i, 10).split(INPUTS[:20], TARGETS[:20]) for i in range(10)]
    assert [len(part.held_out_inputs) for part in parts] == [1, 1, 1, 1] + [0] * 6


def test_a_nodes_own_samples_are_not_divided_whatever_the_partition() -> None:
    part = place(3, 5, "labels:1").own(INPUTS, TARGETS, held_out=0.5)
    assert (len(part.inputs), len(part.held_out_inputs)) == (50, 51)
    assert rows(part.inputs) | rows(part.held_out_inputs) == rows(INPUTS)


def test_labels_that_no_node_holds_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    for i in range(3):
        place(i, 3, "labels:1").split(INPUTS, TARGETS)
    assert [record.getMessage() for record in caplog.records] == [
        "partition labels:1 over 3 shards: no node holds label 3, so none learns it"
    ]


def test_targets_that_are_no_labels_can_be_divided_by_number_only() -> None:
    values = torch.rand(101)
    sizes = [len(place(i, 3).split(INPUTS, values).inputs) for i in range(3)]
    assert sum(sizes) == 80
    with pytest.raises(DataError, match=r"labels:2 needs one class label a sample, but a target is float32 \(\)"):
        place(0, 3, "labels:2").split(INPUTS, values)


def test_data_whose_lengths_or_shapes_do_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="101 inputs but 100 targets"):
        place().split(INPUTS, TARGETS[:100])
    with pytest.raises(DataError, match="2 held-out inputs but 3 held-out targets"):
        Data(INPUTS, TARGETS, INPUTS[:2], TARGETS[:3])
    with pytest.raises(DataError, match=r"training inputs are float32 \(101, 1\), held-out inputs float32 \(2, 3\)"):
        Data(INPUTS, TARGETS, torch.zeros(2, 3), TARGETS[:2])
    with pytest.raises(DataError, match="inputs is list object, expected a tensor"):
        Data([1, 2], TARGETS, INPUTS, TARGETS)  # type: ignore[arg-type]


def test_too_few_samples_and_impossible_places_are_refused() -> None:
    with pytest.raises(DataError, match="1 samples are too few to hold out 1"):
        place().split(INPUTS[:1], TARGETS[:1])
    with pytest.raises(DataError, match=r"held_out = 1\.5 must be above 0 and below 1"):
        place().split(INPUTS, TARGETS, held_out=1.5)
    with pytest.raises(DataError, match="shard 5 of 5: expected a number from 0 to 4"):
        place(5, 5)


# --- a node's own files -------------------------------------------------------------------------------------------


def write_images(folder: Path) -> None:
    """Class 3: two pictures; class 7: an array of four, one of one, and a file of another kind."""
    for name in ("3", "7", ".cache"):
        (folder / name).mkdir()
    for k in range(2):
        Image.fromarray(np.full((8, 8), 100 + k, dtype=np.uint8)).save(folder / "3" / f"{k}.png")
    np.save(folder / "7" / "many.npy", np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8))
    np.save(folder / "7" / "one.npy", np.zeros((8, 8), dtype=np.uint8))
    (folder / "7" / "notes.txt").write_text("not an image")


def test_a_folder_holds_one_folder_a_class(tmp_path: Path) -> None:
    write_images(tmp_path)
    images, labels = read_folder(tmp_path, tuple("0123456789"), (1, 8, 8))
    assert (images.shape, images.dtype) == ((7, 1, 8, 8), torch.uint8)
    assert labels.tolist() == [3, 3, 7, 7, 7, 7, 7]
    assert images[:, 0, 0, 0].tolist() == [100, 101, 0, 64, 128, 192, 0]


def test_a_shipped_task_takes_a_nodes_own_files(tmp_path: Path) -> None:
    write_images(tmp_path)
    task = load_task("digits")
    part = local_data(task, place(0, 5, "folder", folder=tmp_path))
    assert (len(part.inputs), len(part.held_out_inputs)) == (5, 2)
    assert part.inputs.shape == (5, 64)
    assert 0 <= float(part.inputs.min()) <= float(part.inputs.max()) <= 1
    assert set(part.targets.tolist()) | set(part.held_out_targets.tolist()) == {3, 7}


def test_pictures_in_colour_have_their_channels_first(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[0, 1] = (10, 20, 30)
    Image.fromarray(pixels).save(tmp_path / "cat" / "a.png")
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "cat" / "b.png")  # grey is widened
    np.save(tmp_path / "cat" / "c.npy", pixels.transpose(2, 0, 1))
    images, _ = read_folder(tmp_path, ("cat",), (3, 32, 32))
    assert images[:, :, 0, 1].tolist() == [[10, 20, 30], [10, 10, 10], [10, 20, 30]]
    inputs = local_data(load_task("cifar10"), place(0, 1, "folder", folder=tmp_path)).inputs
    assert (inputs.shape, inputs.dtype) == ((2, 3, 32, 32), torch.float32)


def test_a_folder_that_cannot_be_used_says_which_file(tmp_path: Path) -> None:
    def refused(match: str, shape: tuple[int, int, int] = (1, 8, 8)) -> None:
        with pytest.raises(DataError, match=match):
            read_folder(tmp_path, ("a", "b"), shape)

    with pytest.raises(DataError, match=r"no folder .*/missing: partition folder reads"):
        read_folder(tmp_path / "missing", ("a",), (1, 8, 8))
    refused("no images under .*, of .png, .jpg")
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "x.npy"
    np.save(file, np.zeros((9, 8), dtype=np.uint8))
    refused(r"x\.npy is 9x8, expected 8x8")
    np.save(file, np.zeros((8, 8)))
    refused(r"x\.npy is float64, expected uint8")
    np.save(file, np.zeros((2, 2, 8, 8), dtype=np.uint8))
    refused(r"x\.npy has shape \(2, 2, 8, 8\), expected one image or a stack")
    np.save(file, np.array([{"a": 1}]), allow_pickle=True)
    refused(r"x\.npy cannot be read as an array")
    file.unlink()
    Image.fromarray(np.zeros((8, 9), dtype=np.uint8)).save(tmp_path / "a" / "x.png")
    refused(r"x\.png is 8x9, expected 8x8")
    (tmp_path / "a" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    refused(r"x\.png cannot be read as a picture")
    (tmp_path / "c").mkdir()
    refused("unknown classes: c; known: a, b")


def test_a_task_that_divides_what_all_nodes_have_refuses_a_folder() -> None:
    with pytest.raises(DataError, match="task quadratic: partition folder: this task divides a data set"):
        local_data(load_task("quadratic"), place(0, 1, "folder"))
