"""TorchJD, where it is installed: an independent library of the same methods."""

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor


def why_not() -> str | None:
    """None where TorchJD can be imported."""
    return None if find_spec("torchjd") else "not installed (pip install torchjd)"


def aligned_mtl(per_loss: Sequence[Sequence[Tensor]], out: Sequence[Tensor]) -> Callable[[], None]:
    """From Jacobians, stacked before, to gradients, which are written to ``out``."""
    aggregator = import_module("torchjd.aggregation").AlignedMTL()
    jac_to_grad = import_module("torchjd.autojac").jac_to_grad
    params = [torch.zeros_like(t).requires_grad_() for t in out]
    for i, p in enumerate(params):
        p.jac = torch.stack([grads[i] for grads in per_loss])  # type: ignore[attr-defined]

    def run() -> None:
        for p, target in zip(params, out, strict=True):
            p.grad = None
            target.zero_()
        jac_to_grad(params, aggregator, retain_jac=True)
        torch._foreach_copy_(list(out), [p.grad for p in params if p.grad is not None])

    return run


def backward(aggregator: str) -> Callable[[Sequence[Tensor], Sequence[Tensor]], None]:
    """``run(losses, parameters)`` fills the gradients by an aggregator of TorchJD."""
    chosen = getattr(import_module("torchjd.aggregation"), aggregator)()
    autojac = import_module("torchjd.autojac")

    def run(losses: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
        autojac.backward(list(losses), inputs=list(parameters))
        autojac.jac_to_grad(list(parameters), chosen)

    return run
