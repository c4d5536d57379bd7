"""Measures the statistics that a balancer needs, and no others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import is_
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from modgrad import ops
from modgrad.balancers.base import MEASURED, Statistics


class Foreseen(NamedTuple):
    """Squared norms of a step's gradients, measured before the step by somebody else."""

    grads: Sequence[Tensor | None]
    versions: Sequence[int]  # in-place changes count them up
    sq_norms: Tensor  # float64 [M]

    @classmethod
    def of(cls, grads: Sequence[Tensor | None], sq_norms: Tensor) -> "Foreseen":
        return cls(grads, _versions(grads), sq_norms)

    def holds(self, grads: Sequence[Tensor | None]) -> bool:
        """Whether these are the gradients that were measured, unchanged."""
        same = len(grads) == len(self.grads) and all(map(is_, grads, self.grads))
        return same and self.versions == _versions(grads)


def _versions(tensors: Sequence[Tensor | None]) -> list[int]:
    return [x._version for x in tensors if x is not None]


def unscaled(sq_norms: Tensor, grad_scale: Tensor | None) -> Tensor:
    """Squared norms of gradients that are ``grad_scale`` times too large, if given."""
    if grad_scale is None:
        return sq_norms
    return sq_norms / grad_scale.to(sq_norms.device).double().square()


@dataclass(frozen=True)
class Meter:
    """Names of the statistics to measure, the number of modalities, the backend."""

    names: frozenset[str]
    num_modalities: int
    backend: str | None

    def __post_init__(self) -> None:
        if not self.names <= MEASURED:
            unknown = sorted(self.names - MEASURED)
            raise ValueError(f"unknown statistics {unknown}, allowed: {sorted(MEASURED)}")

    def _sq_norms(self, tensors: Sequence[Tensor], group: Sequence[int]) -> Tensor:
        return ops.group_sq_norms(tensors, group, self.num_modalities, backend=self.backend)

    def of_gradients(
        self,
        known: Statistics,
        parameters: Sequence[Tensor],
        grads: Sequence[Tensor],
        group: Sequence[int],
        grad_scale: Tensor | None,
    ) -> Statistics:
        """What one loss's gradients add; they are ``grad_scale`` times too large, if given."""
        found = {}
        if "grad_sq_norms" in self.names:
            found["grad_sq_norms"] = unscaled(self._sq_norms(grads, group), grad_scale)
        if "param_sq_norms" in self.names:
            found["param_sq_norms"] = self._sq_norms(parameters, group)
        return replace(known, **found)

    def of_losses(
        self,
        known: Statistics,
        parameters: Sequence[Tensor],
        grads: Sequence[Sequence[Tensor | None]],
        group: Sequence[int],
    ) -> Statistics:
        """What the gradients of several losses add."""
        found: dict[str, Tensor] = {}
        if "tensor_gram" in self.names:
            found |= self._tensor_gram(grads, group)
        elif self.names & {"gram", "grad_sq_norms"}:
            gram = ops.group_gram(grads, group, self.num_modalities, backend=self.backend)
            found |= {"gram": gram, "grad_sq_norms": gram.sum((1, 2))}  # the norm of their sum
        if "param_sq_norms" in self.names:
            found["param_sq_norms"] = self._sq_norms(parameters, group)
        return replace(known, **found)

    def _tensor_gram(
        self, grads: Sequence[Sequence[Tensor | None]], group: Sequence[int]
    ) -> dict[str, Tensor]:
        """The gram of each parameter tensor, and from it those of the modalities."""
        P = len(group)
        gram = ops.group_gram(grads, range(P), P, backend=self.backend)
        # not from the cache, where a fake tensor would outlive its mode
        make = _on_device.__wrapped__ if isinstance(gram, FakeTensor) else _on_device
        owner = make(tuple(group), gram.device)
        members = owner == torch.arange(self.num_modalities, device=gram.device)[:, None]
        # not index_add, which adds in any order on a GPU, nor a product, where 0 times NaN is NaN
        of_modalities = torch.where(members[:, :, None, None], gram, 0.0).sum(1)
        return {
            "tensor_gram": gram,
            "tensor_group": owner,
            "gram": of_modalities,
            "grad_sq_norms": of_modalities.sum((1, 2)),
        }


@lru_cache(maxsize=16)
def _on_device(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Copied once: a copy from the host in every step would wait for the device."""
    return torch.tensor(values, device=device)
