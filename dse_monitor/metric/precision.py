"""Float32 products in full, whatever the program around has allowed, and float64 on every device.

Training scripts often allow TF32 (10 bits of mantissa) for all products of the process. Distances between
tokens and small singular values need more, and the number must not depend on the script it is measured in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# The older of torch's two interfaces raises errors once the newer one was used, so the newer one is taken
# where there is one (torch 2.9); it understands what the older one set.
_NEW = hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision")


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Within, float32 products and convolutions keep float32 on every backend; then all is as before.

    The settings belong to the process: products of other threads are exact, and slower, meanwhile.
    """
    before = _get()
    _set(("ieee", "ieee", "ieee") if _NEW else ("highest", False))
    try:
        yield
    finally:
        _set(before)


def with_float64(features: Tensor) -> Tensor:
    """The same features where there is float64: Apple's GPUs know none, the processor beside them does."""
    return features.cpu() if features.device.type == "mps" else features


def _get() -> tuple[Any, ...]:
    if _NEW:
        return tuple(backend.fp32_precision for backend in _backends())
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def _set(values: tuple[Any, ...]) -> None:
    if _NEW:
        for backend, value in zip(_backends(), values, strict=True):
            backend.fp32_precision = value
    else:
        torch.set_float32_matmul_precision(values[0])
        torch.backends.cudnn.allow_tf32 = values[1]


def _backends() -> tuple[Any, ...]:
    """cuBLAS, oneDNN and the convolutions of cuDNN, each with its own setting."""
    backends: Any = torch.backends
    return backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn.conv
