"""What public ops that change tensors in place share: the way to the native backend and back."""

from collections.abc import Sequence

import torch
from torch import Tensor

from modgrad.backends import native, select

# What the native ops raise before they change anything, on tensors they cannot take.
REFUSALS = (RuntimeError, TypeError, NotImplementedError)


def check_refusal(error: Exception) -> None:
    """Raise what is no refusal: where a GPU fails amid an op's launches, some are done."""
    if isinstance(error, torch.OutOfMemoryError) or "CUDA error" in str(error):
        raise error


def is_native(tensors: Sequence[Tensor], backend: str | None) -> bool:
    """Whether the native backend is to run, which checks every tensor itself.

    Checking 1,000 of them here first would take longer than the op. Where it refuses, the checks
    that follow name the culprit; where they find none, the tensors are made dense for it.
    """
    first = tensors[0] if tensors else None
    return isinstance(first, Tensor) and select(first.device, backend) is native


def write_back(tensors: Sequence[Tensor], dense: Sequence[Tensor]) -> None:
    """After an op in place: fill the tensors that it saw as copies, and tell autograd."""
    for tensor, changed in zip(tensors, dense, strict=True):
        if changed is not tensor and changed.data_ptr() != tensor.data_ptr():
            tensor.copy_(changed)
    torch.autograd.graph.increment_version(tensors)


def seed_on(device: torch.device, seed: int | Tensor | None) -> Tensor:
    """The seed of a noise as backends take it: one int64 element on the device."""
    if seed is None:
        raise ValueError("`seed` is None, allowed with `noise`: an integer or an int64 tensor")
    if not isinstance(seed, Tensor):
        return torch.full((), seed, dtype=torch.int64, device=device)
    if seed.dtype != torch.int64 or seed.numel() != 1 or seed.device != device:
        raise ValueError(
            f"`seed` is {seed.dtype} {list(seed.shape)} on {seed.device},"
            f" allowed: one int64 element on {device}"
        )
    return seed
