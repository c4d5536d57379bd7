"""Lightning, where it is installed: the norms that its users log."""

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor, nn

PACKAGES = "lightning.pytorch", "pytorch_lightning"


def why_not() -> str | None:
    """None where Lightning can be imported."""
    return None if _package() else "not installed (pip install lightning)"


def _package() -> str | None:
    return next((name for name in PACKAGES if find_spec(name.partition(".")[0])), None)


def grad_sq_norms(by_group: Sequence[Sequence[Tensor]]) -> Callable[[], Tensor]:
    """``grad_norm`` of a module a group, as ``self.log_dict(grad_norm(…))`` in a hook calls it."""
    grad_norm = import_module(f"{_package()}.utilities").grad_norm
    modules = []
    for grads in by_group:
        parameters = nn.ParameterList(torch.empty_like(g) for g in grads)
        for p, grad in zip(parameters, grads, strict=True):
            p.grad = grad
        modules.append(parameters)

    def run() -> Tensor:
        norms = [grad_norm(module, 2)["grad_2.0_norm_total"] for module in modules]
        return torch.stack(norms).square()

    return run
