"""Checkpoints and models on disk: whole or not at all, and never taken for what they are not."""

import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import shoal.checkpoint
from shoal.checkpoint import FIXED_ON_RESUME, FORMAT, Checkpoint, read, read_model, write, write_model
from shoal.errors import CheckpointError
from shoal.settings import Settings

TASK = {"task": "digits", "shapes": [[10, 64], [10]], "classes": list(range(10))}


def checkpoint(**changes: Any) -> Checkpoint:
    values: dict[str, Any] = {
        "task_document": TASK,
        "run_document": Settings().run_document(),
        "node_id": "node-a-00ff00",
        "incarnation": 3,
        "step": 120,
        "gradients": 121,
        "round": 0,
        "state": torch.randn(650),
        "memory": {"momentum": torch.randn(640), "batches": torch.get_rng_state(), "empty": torch.zeros(0)},
        "rng": {"algorithm": [3, [1, 2, 3], None]},
        "settlement": {"records": [["node-b-123456", 2, 9]], "doubts": []},
    }
    return Checkpoint(**values | changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "checkpoint.safetensors"


def refusal(path: Path, **documents: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(path, **documents)
    return str(caught.value)


def rewrite_metadata(path: Path, **changes: str | None) -> None:
    """Change the metadata of a safetensors file and leave its tensors alone."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    for key, value in changes.items():
        name = f"shoal.{key}"
        header["__metadata__"].pop(name) if value is None else header["__metadata__"].update({name: value})
    document = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(document)) + document + raw[8 + length :])


# --- what goes in comes out -----------------------------------------------------------------------------------------


def test_everything_comes_back_as_it_was(path: Path) -> None:
    before = checkpoint()
    write(path, before)
    after = read(path, task_document=TASK, run_document=Settings().run_document())
    assert torch.equal(after.state, before.state)
    assert after.memory.keys() == before.memory.keys()
    for name, tensor in before.memory.items():
        assert torch.equal(after.memory[name], tensor)
        assert after.memory[name].dtype == tensor.dtype
    for name in ("task_document", "run_document", "node_id", "incarnation", "step", "gradients", "round"):
        assert getattr(after, name) == getattr(before, name), name
    assert (after.rng, after.settlement, after.saved_at) == (before.rng, before.settlement, before.saved_at)


def test_the_time_of_saving_is_that_of_the_snapshot() -> None:
    before = time.time()
    assert before <= checkpoint().saved_at <= time.time()


def test_what_was_read_is_ours_to_change(path: Path) -> None:
    write(path, checkpoint(state=torch.ones(4)))
    saved = read(path)
    saved.state += 1
    assert torch.equal(read(path).state, torch.ones(4))


def test_views_of_one_vector_are_written_apart(path: Path) -> None:
    whole = torch.arange(10.0)
    write(path, checkpoint(state=whole, memory={"head": whole[:3], "tail": whole[::2], "same": whole}))
    saved = read(path)
    assert torch.equal(saved.memory["head"], torch.tensor([0.0, 1.0, 2.0]))
    assert torch.equal(saved.memory["tail"], torch.tensor([0.0, 2.0, 4.0, 6.0, 8.0]))
    assert torch.equal(saved.memory["same"], saved.state)


def test_documents_may_be_written_with_tuples(path: Path) -> None:
    document = {"shapes": ((10, 64), (10,))}
    write(path, checkpoint(task_document=document))
    assert read(path, task_document=document).task_document == {"shapes": [[10, 64], [10]]}


# --- atomic ---------------------------------------------------------------------------------------------------------


def test_a_new_checkpoint_replaces_the_old_one_and_leaves_no_other_file(path: Path) -> None:
    write(path, checkpoint(step=1))
    write(path, checkpoint(step=2))
    assert read(path).step == 2
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("place", ["save_file", "_sync"])
def test_a_write_that_fails_leaves_the_old_checkpoint(path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, checkpoint(step=1))
    owner = safetensors.torch if place == "save_file" else shoal.checkpoint

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(owner, place, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write(path, checkpoint(step=2))
    assert read(path).step == 1
    assert os.listdir(path.parent) == [path.name]


def test_the_file_is_on_disk_before_it_takes_the_old_ones_place(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real_sync, real_replace = shoal.checkpoint._sync, Path.replace
    monkeypatch.setattr(shoal.checkpoint, "_sync", lambda p: (order.append(f"sync {p.name}"), real_sync(p)))
    monkeypatch.setattr(Path, "replace", lambda a, b: (order.append("rename"), real_replace(a, b))[1])
    write(path, checkpoint())
    assert order == [f"sync .{path.name}.tmp", "rename", f"sync {path.parent.name}"]


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write(tmp_path / "file" / "checkpoint.safetensors", checkpoint())


# --- files that are not a good checkpoint -----------------------------------------------------------------------------


def test_a_missing_checkpoint_says_how_to_start_without(path: Path) -> None:
    assert refusal(path) == f"no checkpoint at {path}; start without --resume, or give another --state-dir"


def test_a_checkpoint_cut_anywhere_is_refused_with_both_lengths(path: Path) -> None:
    write(path, checkpoint())
    whole = path.read_bytes()
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        message = refusal(path)
        assert f"{path} is cut short: expected " in message, length
        assert f"got {length}" in message


def test_one_flipped_bit_anywhere_is_noticed(path: Path) -> None:
    write(path, checkpoint(state=torch.ones(8), memory={"momentum": torch.zeros(8)}))
    whole = path.read_bytes()
    read(path)
    for position in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        if (message := _refusal_or_same(path, whole)) is not None:
            assert str(path) in message


def _refusal_or_same(path: Path, whole: bytes) -> str | None:
    """The refusal; or None where the bit does not matter (a space that pads the header)."""
    try:
        saved = read(path)
    except CheckpointError as error:
        return str(error)
    assert torch.equal(saved.state, torch.ones(8))
    assert torch.equal(saved.memory["momentum"], torch.zeros(8))
    assert (saved.step, saved.node_id, saved.run_document) == (120, "node-a-00ff00", Settings().run_document())
    return None


def test_a_damaged_tensor_is_named_with_both_checksums(path: Path) -> None:
    write(path, checkpoint(memory={}))
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 0x40
    path.write_bytes(raw)
    assert "is damaged: tensor state has checksum " in refusal(path)


def test_a_changed_document_is_refused(path: Path) -> None:
    write(path, checkpoint())
    rewrite_metadata(path, checkpoint=json.dumps({"format": FORMAT, "step": 7}))
    assert "is damaged: document has checksum" in refusal(path)
    rewrite_metadata(path, checkpoint="{")
    assert "its document cannot be read" in refusal(path)


def test_a_newer_format_asks_for_the_newer_shoal_before_anything_else_is_judged(path: Path) -> None:
    write(path, checkpoint())
    rewrite_metadata(path, checkpoint=json.dumps({"format": FORMAT + 1}), crc32=None)
    assert refusal(path) == (f"{path} has format {FORMAT + 1}, this shoal reads up to {FORMAT}; use the newer shoal")


def test_a_checkpoint_that_lacks_a_part_names_it(path: Path) -> None:
    import zlib

    write(path, checkpoint())
    crc32 = {"state": shoal.checkpoint._checksum(read(path).state), "memory.h": 1}
    memory = {name: shoal.checkpoint._checksum(t) for name, t in read(path).memory.items()}
    crc32 |= {f"memory.{name}": value for name, value in memory.items()}
    text = json.dumps({"format": FORMAT, "crc32": crc32, "step": 1})
    rewrite_metadata(path, checkpoint=text, crc32=str(zlib.crc32(text.encode())))
    assert "lacks task_document, run_document, node_id, incarnation, gradients" in refusal(path)
    assert "memory.h" in refusal(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04" + b"\x00" * 60, "is not a safetensors file"),
        (b"\x80\x02}q\x00X\x05\x00\x00\x00stateq\x01.", "is not a safetensors file"),
        (struct.pack("<Q", 1 << 60) + b"{}", "is not a safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "not a safetensors file"),
        (struct.pack("<Q", 2) + b"{]", "not a safetensors file"),
        (struct.pack("<Q", 9) + b'{"a": {}}', "not a safetensors file"),
        (struct.pack("<Q", 2) + b"{}" + b"more", "not a safetensors file"),
    ],
)
def test_other_files_are_refused_without_being_unpickled(path: Path, content: bytes, message: str) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    assert message in refusal(path)


def test_a_header_that_claims_much_is_not_believed(path: Path) -> None:
    path.parent.mkdir()
    claim = json.dumps({"state": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    path.write_bytes(struct.pack("<Q", len(claim)) + claim)
    assert f"expected {8 + len(claim) + (1 << 42)} bytes, got {8 + len(claim)}" in refusal(path)


def test_a_model_is_not_a_checkpoint_and_the_other_way_round(path: Path) -> None:
    write_model(path, {"weight": torch.ones(2)}, {})
    assert "is not a checkpoint of shoal" in refusal(path)
    write(path, checkpoint())
    with pytest.raises(CheckpointError, match=f"shoal export {path.parent} --checkpoint"):
        read_model(path)


# --- another task, another run ----------------------------------------------------------------------------------------


def test_another_task_is_refused_with_the_keys_that_differ(path: Path) -> None:
    write(path, checkpoint())
    message = refusal(path, task_document=TASK | {"task": "mnist", "version": 2})
    assert 'task: ours "mnist", theirs "digits"' in message
    assert "version: ours 2, theirs absent" in message
    assert "shapes" not in message


def test_a_long_difference_is_told_briefly(path: Path) -> None:
    write(path, checkpoint(task_document={f"key{k}": ["x" * 500] for k in range(9)}))
    message = refusal(path, task_document={})
    assert len(message) < 1000
    assert "and 6 more" in message


@pytest.mark.parametrize("change", [{"algorithm": "d2"}, {"weight": "samples"}, {"partition": "iid"}, {"seed": 1}])
def test_what_gives_the_memory_and_the_data_their_meaning_may_not_change(path: Path, change: dict[str, Any]) -> None:
    write(path, checkpoint())
    (key,) = change
    assert key in FIXED_ON_RESUME
    assert f"{key}: ours " in refusal(path, run_document=Settings(**change).run_document())


@pytest.mark.parametrize(
    "change",
    [
        {"rounds": 9},
        {"gradients": 9},
        {"lr": 0.2},
        {"schedule": "cosine"},
        {"batch": 4},
        {"overlap": 2},
        {"topology": "ring"},
    ],
)
def test_length_step_size_and_graph_may_change(path: Path, change: dict[str, Any]) -> None:
    write(path, checkpoint())
    assert read(path, run_document=Settings(**change).run_document()).step == 120


# --- models for people ------------------------------------------------------------------------------------------------


def test_a_model_loads_in_plain_torch_in_two_lines(path: Path) -> None:
    source, target = (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)) for _ in range(2))
    write_model(path, source.state_dict(), {"task": "digits"})
    target.load_state_dict(safetensors.torch.load_file(path))
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor)
        assert target.state_dict()[name].dtype == tensor.dtype


def test_tied_weights_are_written_under_both_names(path: Path) -> None:
    module = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    module["b"].weight = module["a"].weight
    write_model(path, module.state_dict(), {})
    tensors, _ = read_model(path)
    assert torch.equal(tensors["a.weight"], tensors["b.weight"])


def test_a_model_remembers_where_it_is_from(path: Path) -> None:
    about = {"task": "digits", "run": {"lr": 0.5}, "held_out_accuracy": None}
    write_model(path, {"weight": torch.ones(2)}, about)
    assert read_model(path)[1] == about


def test_a_model_of_others_is_read_too(path: Path) -> None:
    path.parent.mkdir()
    safetensors.torch.save_file({"weight": torch.ones(2)}, path)
    tensors, about = read_model(path)
    assert torch.equal(tensors["weight"], torch.ones(2))
    assert about == {}


def test_a_missing_or_cut_model_is_refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_model(path)
    write_model(path, {"weight": torch.ones(200)}, {})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="cut short"):
        read_model(path)
