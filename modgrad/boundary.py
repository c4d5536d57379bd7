"""The boundary of the encoders: gradients that enter there are scaled by this step's weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modgrad.autograd import scale_backward
from modgrad.balancers.base import OBSERVED, Balancer
from modgrad.observation import in_order
from modgrad.records import Decision


def check(balancer: Balancer[Any], names: frozenset[str], takes_losses: bool) -> None:
    """Raise ValueError where the statistics called ``names`` cannot be known there, noise would be
    needed, or weights are not one a modality."""
    late = sorted(names - OBSERVED)
    if late:
        raise ValueError(f"{late} are known after backward only, allowed: at='parameters'")
    if getattr(balancer, "adds_noise", False):
        raise ValueError("GE noise needs the gradients, allowed: at='parameters', or noise=0")
    if takes_losses:
        raise ValueError("several losses are balanced at='parameters' only")


class Boundary:
    """The weights, float32 [M], and whether forward and backward have come by in this step.

    They stay one tensor that is refilled: a captured CUDA graph reads the one that it met.
    """

    def __init__(
        self, modalities: tuple[str, ...], device: torch.device, backend: str | None
    ) -> None:
        self._modalities, self._backend = modalities, backend
        self._weights = torch.ones(len(modalities), device=device)
        self._is_used = self._is_passed = False

    @property
    def weights(self) -> Tensor:
        """For use in this step's forward."""
        self._is_used = True
        return self._weights

    def scale_backward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The features unchanged; in backward, the gradient of each is scaled by its weight."""
        ordered = in_order("features", features, self._modalities)
        scaled = scale_backward(ordered, self.weights, backend=self._backend)
        self._is_passed = False
        for x in scaled.values():
            if x.requires_grad and not torch.compiler.is_compiling():
                x.register_hook(self._note_backward)
        return scaled

    def _note_backward(self, grad: Tensor) -> None:
        self._is_passed = True

    def require_use(self) -> None:
        """Raise RuntimeError where forward has not asked for the weights."""
        if not self._is_used:
            raise RuntimeError("at='boundary', but `scale_backward` was not called in forward")

    def require_time(self) -> None:
        """Raise RuntimeError where backward has read the weights already."""
        if self._is_passed:
            raise RuntimeError("at='boundary', but `observe` comes after backward: too late")

    def apply(self, decision: Decision) -> None:
        """Fill in the weights that backward is to read; noise cannot be added here."""
        if decision.modulation.noise is not None:
            raise ValueError("GE noise needs the gradients, allowed: at='parameters'")
        self.fill(decision.weights[:, 0])

    def fill(self, weights: Tensor) -> None:
        # .data has a version counter of its own: what a compiled forward of torch 2.10 has kept for
        # its backward must not count as changed
        self._weights.data.copy_(weights)

    def clear(self) -> None:
        """Scale nothing."""
        self._weights.data.fill_(1.0)

    def end_step(self) -> None:
        """The next forward and backward have not come by."""
        self._is_used = self._is_passed = False

    def follow(self, device: torch.device) -> None:
        """Move to where the parameters are now."""
        self._weights = self._weights.to(device)
