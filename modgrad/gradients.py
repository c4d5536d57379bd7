"""Gradients of several losses in the parameters, with no more backward work than they need."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from modgrad.distributed import is_alone

Gradients = list[Tensor | None]


def per_loss(losses: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Gradients]:
    """K lists of P gradients, None where a loss does not reach a parameter.

    Autograd visits only what lies between a loss and the parameters asked for: a unimodal loss
    costs one pass through its own encoder. The graph is kept.
    """
    return [
        list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))
        for loss in losses
    ]


def of_sum(
    losses: Sequence[Tensor], weights: Tensor | None, parameters: Sequence[Tensor]
) -> Gradients:
    """Gradients of ``sum_k weights[k] losses[k]``, weights 1 for None. Frees the graph."""
    if not parameters:
        return []
    values = torch.stack(list(losses))
    total = values.sum() if weights is None else (weights.to(values) * values).sum()
    return list(torch.autograd.grad(total, parameters, allow_unused=True))


@torch.no_grad()
def owned(grads: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Gradients:
    """Copies, each in memory of its own that is laid out like its parameter.

    Autograd may return one tensor for two parameters (of a sum), one with strides of 0 (of a
    parameter's sum), or one that somebody else holds: not to be changed in place, nor to be kept.
    """
    return [
        None if grad is None else torch.empty_like(parameter).copy_(grad)
        for parameter, grad in zip(parameters, grads, strict=True)
    ]


def accumulate(parameters: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    """Add to ``.grad``, as ``backward`` does; the gradients become it where there is none."""
    for parameter, grad in zip(parameters, grads, strict=True):
        if grad is not None:
            parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)


def averaged(
    grads: Gradients, parameters: Sequence[Tensor], group: dist.ProcessGroup | None
) -> Gradients:
    """The averages of what autograd returned; on one rank, that itself."""
    if is_alone(group):
        return grads
    own = owned(grads, parameters)
    mean_over_ranks_(own, group)
    return own


def mean_over_ranks_(grads: Sequence[Tensor | None], group: dist.ProcessGroup | None) -> None:
    """Average gradients in place: autograd.grad goes past the reduction of DDP."""
    if is_alone(group):
        return
    present = [grad for grad in grads if grad is not None]
    works = [dist.all_reduce(grad, group=group, async_op=True) for grad in present]
    for work in works:
        work.wait()
    torch._foreach_div_(present, dist.get_world_size(group))
