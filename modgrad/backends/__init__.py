"""Which backend runs an op: the one asked for by name, or the first usable one of ``ORDER``."""

import os

import torch

from modgrad.backends import native, reference, triton
from modgrad.backends.protocol import Backend

BACKENDS: dict[str, Backend] = {"native": native, "triton": triton, "reference": reference}
ORDER: dict[str, tuple[str, ...]] = {
    "cpu": ("native", "reference"),
    "cuda": ("native", "triton", "reference"),
}


class BackendUnavailableError(RuntimeError):
    """The backend that was asked for by name cannot run here."""


def select(device: torch.device, name: str | None = None) -> Backend:
    """The backend called ``name``, or by the variable MODGRAD_BACKEND, or the first that can run.

    Raises:
        ValueError: no backend has that name.
        BackendUnavailableError: the backend asked for cannot run on ``device``; says why.
    """
    name = name or os.environ.get("MODGRAD_BACKEND") or None
    if name is None:
        order = ORDER.get(device.type, ("reference",))
        return next(b for b in map(BACKENDS.__getitem__, order) if b.unusable(device) is None)
    if name not in BACKENDS:
        raise ValueError(f"`backend` is {name!r}, allowed: {', '.join(BACKENDS)}")
    reason = BACKENDS[name].unusable(device)
    if reason is not None:
        raise BackendUnavailableError(f"backend {name!r} cannot run on {device}: {reason}")
    return BACKENDS[name]


def why_not(device: torch.device | str) -> dict[str, str | None]:
    """For each backend, None where it can run on ``device``, else the reason it cannot."""
    device = torch.device(device)
    return {name: backend.unusable(device) for name, backend in BACKENDS.items()}
