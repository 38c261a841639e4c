"""Checkpoints and models on disk: safetensors with JSON in the metadata, written whole or not at all.

A checkpoint is what a node needs to go on: its state, what its algorithm keeps, its random states, and the exchanges
that its peers may still ask about, all of one moment. A model file is for people: plain torch loads it.
Nothing is unpickled, and no size that a file claims is believed before it is compared with the file's length.
"""

import dataclasses
import json
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from shoal.documents import differing_keys
from shoal.errors import CheckpointError

FORMAT = 1
"""Of a checkpoint; raised when an older shoal could not read it."""
MAX_HEADER_BYTES = 16 << 20
FIXED_ON_RESUME = ("algorithm", "weight", "partition", "seed")
"""Settings of the run that a checkpoint cannot outlive.

They give what the algorithm keeps its meaning: D2's correction is how far this node's weighted gradient, on its own
samples, lies from the mean of all. `partition` and `seed` say which samples those are. Anything else (length, step
size, batch, graph) may change between two starts.
"""

_CHECKPOINT_KEY, _MODEL_KEY, _CRC_KEY = "shoal.checkpoint", "shoal.model", "shoal.crc32"
_STATE, _MEMORY = "state", "memory."
_REMEDY = "use another copy, or start anew without it"


@dataclasses.dataclass(kw_only=True)
class Checkpoint:
    """One node at one moment between two steps. Documents and random states are JSON values."""

    task_document: dict[str, Any]
    run_document: dict[str, Any]
    node_id: str
    incarnation: int  # of the process that wrote it; the next one takes a higher
    step: int
    gradients: int  # applied by this node
    round: int  # of a synchronous run
    state: Tensor  # (d+b,) float32
    memory: dict[str, Tensor]  # what the algorithm and the settlement keep: momentum, correction, deltas in doubt
    rng: dict[str, Any]
    settlement: dict[str, Any]  # exchanges committed and unconfirmed, or in doubt
    saved_at: float = dataclasses.field(default_factory=time.time)  # Unix time, s


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: `path` holds the old checkpoint or the new one, whatever happens. Raises OSError."""
    tensors = {_STATE: checkpoint.state, **{_MEMORY + k: v for k, v in checkpoint.memory.items()}}
    tensors = _owned(tensors)
    fields = dataclasses.fields(checkpoint)
    values = {f.name: getattr(checkpoint, f.name) for f in fields if f.name not in ("state", "memory")}
    checksums = {name: _checksum(tensor) for name, tensor in tensors.items()}
    document = json.dumps({"format": FORMAT, "crc32": checksums, **values})
    metadata = {_CHECKPOINT_KEY: document, _CRC_KEY: str(zlib.crc32(document.encode()))}
    _write_atomically(path, tensors, metadata)


def read(
    path: Path,
    *,
    task_document: Mapping[str, Any] | None = None,
    run_document: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """The checkpoint at `path`. With documents, also compares them with those of the checkpoint.

    Raises CheckpointError for a file that is missing, cut short, damaged, no checkpoint, of a newer format, of another
    task, or of a run that differs in one of FIXED_ON_RESUME.
    """
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}; start without --resume, or give another --state-dir")
    tensors, metadata = _load(path)
    document = _document(path, metadata)
    for name, tensor in tensors.items():
        _require_checksum(path, f"tensor {name}", document["crc32"].get(name), _checksum(tensor))
    memory = {k.removeprefix(_MEMORY): v for k, v in tensors.items() if k.startswith(_MEMORY)}
    names = [f.name for f in dataclasses.fields(Checkpoint) if f.name not in ("state", "memory")]
    missing = [n for n in names if n not in document] + [_STATE] * (_STATE not in tensors)
    missing += sorted(document["crc32"].keys() - tensors.keys())
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; remove it and start without --resume")
    saved = Checkpoint(state=tensors[_STATE], memory=memory, **{n: document[n] for n in names})
    if task_document is not None:
        _require_same(path, "task", _as_json(task_document), saved.task_document)
    if run_document is not None:
        ours = {key: _as_json(run_document).get(key) for key in FIXED_ON_RESUME}
        _require_same(path, "run", ours, {key: saved.run_document.get(key) for key in FIXED_ON_RESUME})
    return saved


def write_model(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a state dict that `module.load_state_dict(safetensors.torch.load_file(path))` takes. Raises OSError.

    `about` is JSON on where the model comes from; atomic as `write`.
    """
    _write_atomically(path, _owned(tensors), {"format": "pt", _MODEL_KEY: json.dumps(dict(about))})


def read_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(state dict, what `write_model` was told about it, {} for a file of others). Raises CheckpointError."""
    tensors, metadata = _load(path)
    if _CHECKPOINT_KEY in metadata:
        raise CheckpointError(
            f"{path} is a checkpoint, expected a model; make one: shoal export {path.parent} --checkpoint"
        )
    about = json.loads(metadata.get(_MODEL_KEY, "{}"))
    return tensors, about if isinstance(about, dict) else {}


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file; its length is checked before anything of it is believed."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = _header(path, file.read(8), size)
            document = json.loads(file.read(header))
            ends = [entry["data_offsets"][1] for name, entry in document.items() if name != "__metadata__"]
            expected = 8 + header + max(ends, default=0)
            if size < expected:
                raise CheckpointError(f"{path} is cut short: expected {expected} bytes, got {size}; {_REMEDY}")
            file.seek(0)
            tensors = safetensors.torch.load(file.read())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged, or not a safetensors file: {error}; {_REMEDY}") from error
    metadata = document.get("__metadata__") or {}
    return tensors, metadata


def _header(path: Path, prefix: bytes, size: int) -> int:
    """Length of the JSON header, in bytes."""
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or size < 8 + length <= 8 + MAX_HEADER_BYTES:
        expected = 8 + length if len(prefix) == 8 else "more than 8"
        raise CheckpointError(f"{path} is cut short: expected {expected} bytes, got {size}; {_REMEDY}")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path} is not a safetensors file (its first bytes are {prefix!r})")
    return length


def _document(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if _CHECKPOINT_KEY not in metadata:
        raise CheckpointError(f"{path} is not a checkpoint of shoal, though a safetensors file; --resume needs one")
    text = metadata[_CHECKPOINT_KEY]
    try:
        document = json.loads(text)
        version = int(document["format"])
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: its document cannot be read; {_REMEDY}") from error
    if version > FORMAT:
        raise CheckpointError(f"{path} has format {version}, this shoal reads up to {FORMAT}; use the newer shoal")
    _require_checksum(path, "document", metadata.get(_CRC_KEY), str(zlib.crc32(text.encode())))
    assert isinstance(document, dict)
    return document


def _require_checksum(path: Path, what: str, expected: object, got: object) -> None:
    if expected != got:
        raise CheckpointError(f"{path} is damaged: {what} has checksum {got}, expected {expected}; {_REMEDY}")


def _require_same(path: Path, what: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    differing = [d if len(d) <= 160 else d[:159] + "…" for d in differing_keys(ours, theirs)]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise CheckpointError(
            f"{path} (theirs) is of another {what}: {'; '.join(differing[:3])}{more}\n"
            f"give the {what} that it was written with, or another --state-dir"
        )


def _as_json(document: Mapping[str, Any]) -> dict[str, Any]:
    """As it would come back from disk: tuples are lists there."""
    plain = json.loads(json.dumps(document))
    assert isinstance(plain, dict)
    return plain


def _owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, dense, and none sharing memory with another, as safetensors wants them."""
    owned, seen = {}, set()
    for name, tensor in tensors.items():
        dense = tensor.detach().cpu().contiguous()
        storage = dense.untyped_storage()
        if storage.nbytes() != dense.nbytes or storage.data_ptr() in seen:
            dense = dense.clone()
        seen.add(dense.untyped_storage().data_ptr())
        owned[name] = dense
    return owned


def _checksum(tensor: Tensor) -> int:
    """crc32 of dtype, shape and bytes."""
    seed = zlib.crc32(f"{tensor.dtype} {list(tensor.shape)}".encode())
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, seed)


def _write_atomically(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")  # one writer a folder; a left-over is overwritten
    try:
        safetensors.torch.save_file(tensors, temporary, metadata)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)  # or a power cut may undo the rename
    except SafetensorError as error:
        raise OSError(f"{temporary}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
