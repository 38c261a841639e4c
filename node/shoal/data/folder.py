"""Partition `folder`: the files that this node has, `DATA_DIR/<class name>/*`, one folder a class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.errors import DataError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
SUFFIXES = (*PICTURES, ".npy")

Shape = tuple[int, int, int]
"""Channels, height, width."""


def read_folder(folder: Path, classes: Sequence[str], shape: Shape) -> tuple[Tensor, Tensor]:
    """(images, labels): (N, C, H, W) uint8 and (N,) int64, in the order of classes and file names.

    A picture is one image, taken as grey for C = 1 and as RGB for C = 3. An .npy file holds one image or a stack of
    them as uint8: (H, W) or (N, H, W) for C = 1, else (C, H, W) or (N, C, H, W). A file's size is read from its
    header, and compared with `shape`, before its pixels. A node need not have every class; files of other kinds
    are passed over.

    Raises DataError, naming the file or folder, when the size is another, a class is unknown, or there is nothing.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: partition folder reads {folder}/<class name>/*")
    unknown = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name not in {*classes} and p.name[0] != ".")
    if unknown:
        raise DataError(f"{folder} holds folders of unknown classes: {', '.join(unknown)}; known: {', '.join(classes)}")
    images, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted((folder / name).glob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                stack = _array(path, shape) if path.suffix.lower() == ".npy" else _picture(path, shape)
                images.append(stack)
                labels += [label] * len(stack)
    if not labels:
        raise DataError(f"no images under {folder}: expected {folder}/<class name>/*, of {', '.join(SUFFIXES)}")
    return torch.from_numpy(np.concatenate(images)), torch.tensor(labels, dtype=torch.int64)


def _picture(path: Path, shape: Shape) -> NDArray[np.uint8]:
    """(1, C, H, W)."""
    from PIL import Image, UnidentifiedImageError

    channels, height, width = shape
    try:
        with Image.open(path) as picture:  # reads the header only
            _require(path, (picture.height, picture.width), (height, width))
            pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # PIL's word for a broken PNG is SyntaxError
        raise DataError(f"{path} cannot be read as a picture: {error}") from error
    return pixels.reshape(1, height, width, channels).transpose(0, 3, 1, 2)


def _array(path: Path, shape: Shape) -> NDArray[np.uint8]:
    """(N, C, H, W)."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # maps: nothing is read yet
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read as an array: {error}") from error
    if array.dtype != np.uint8:
        raise DataError(f"{path} is {array.dtype}, expected uint8 (0 to 255)")
    one = shape[1:] if shape[0] == 1 else shape
    _require(path, array.shape[-len(one) :], one)
    if array.ndim > len(one) + 1:
        raise DataError(f"{path} has shape {array.shape}, expected one image or a stack of images")
    return np.array(array).reshape(-1, *shape)


def _require(path: Path, size: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if size != expected:
        got, wanted = ("x".join(map(str, s)) for s in (size, expected))
        raise DataError(f"{path} is {got}, expected {wanted} (height and width last)")
