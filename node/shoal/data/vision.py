"""torchvision, also where its build does not fit that of torch."""

import importlib
from typing import Any

import torch

_declared: list[Any] = []
"""Kept: when a Library is collected, its declarations go with it."""


def require_torchvision() -> None:
    """Call it before any `import torchvision`.

    A torchvision built for CUDA cannot load its compiled operators beside a torch for CPUs, and its import fails for
    want of their declarations. Declared here, without kernels, they let models and data sets work; detection
    operators stay unavailable. Does nothing where the import works.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if _declared or "torchvision::nms" not in str(error):
            raise
        operators: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(operators)
        importlib.import_module("torchvision")
