"""This machine itself: certificates, device, disk."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shoal.certificates.credentials import Credentials
from shoal.doctor.finding import Finding
from shoal.errors import SettingsError
from shoal.folder import WRITABLE
from shoal.settings import Settings

LEAST_FREE = 1_000_000_000
"""Bytes: two checkpoints of a model of 100 million parameters, and some history."""
NVIDIA = Path("/proc/driver/nvidia/version")


def check_certificates(settings: Settings) -> Finding:
    """Whether nodes will take the certificate of `--tls`, and for how long."""
    if not settings.tls:
        return Finding("certificates", "skipped", "no --tls: nodes talk in plain text")
    try:
        credentials = Credentials(Path(settings.tls))
        credentials.fits(shoal=settings.shoal, name=settings.name, role=credentials.member.role)
    except SettingsError as error:
        remedy = f"`shoal certs show {settings.tls}` says what it holds; renew it, or take a token"
        return Finding("certificates", "failure", str(error), remedy)
    mine = credentials.member
    if (why := credentials.problem(mine)) is not None:
        return Finding("certificates", "failure", why, f"`shoal certs renew {settings.tls}`, or a token and `join`")
    if words := credentials.warning():
        return Finding("certificates", "warning", words, "renew it now: who comes late takes a token")
    return Finding("certificates", "ok", f"{mine.words}, until {mine.ends:%Y-%m-%d}")


def check_device(settings: Settings) -> Finding:
    """Whether torch has the device that is asked for, and whether a GPU lies idle."""
    import torch  # seconds, and none of the other questions needs it

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if settings.device.startswith("cuda"):
        index = int(settings.device.partition(":")[2] or 0)
        if index < count:
            return Finding("gpu", "ok", f"{settings.device} is {_gpu(index)}")
        words = f"{settings.device} is not there: torch {torch.__version__} sees {count} GPUs"
        remedy = "install a torch built for CUDA and the driver (`nvidia-smi` shows it), or give --device cpu"
        return Finding("gpu", "failure", words, remedy)
    if count:
        words = f"{count} GPUs, the first is {_gpu(0)}"
        return Finding("gpu", "ok", words + ("" if settings.device == "auto" else "; --device cpu leaves them idle"))
    if NVIDIA.exists():
        words = f"the machine has an NVIDIA driver, and torch {torch.__version__} sees no GPU"
        return Finding("gpu", "warning", words, "install a torch built for CUDA")
    return Finding("gpu", "ok", f"none; torch {torch.__version__} computes on the CPU")


def _gpu(index: int) -> str:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    return f"{torch.cuda.get_device_name(index)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"


def check_disk(settings: Settings) -> Iterator[Finding]:
    """Whether state can be written where it should be, and how much."""
    folder = Path(settings.state_dir)
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        yield Finding("disk", "failure", f"{there} cannot be written: {error.strerror or error}", WRITABLE)
        return
    disk = os.statvfs(there)
    free = disk.f_bavail * disk.f_frsize
    words = f"{free / 1e9:.1f} GB free at {there}"
    if free < LEAST_FREE:
        yield Finding("disk", "warning", words, "make room: a checkpoint is written beside the last one")
    else:
        yield Finding("disk", "ok", words)
