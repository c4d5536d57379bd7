"""What modgrad is compared with: the papers' loops, and the best that stock PyTorch offers."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def loop_group_sq_norms(tensors: Sequence[Tensor], group: Sequence[int], num_groups: int) -> Tensor:
    """A norm and a host read per tensor, as the released code of this field does."""
    sums = [0.0] * num_groups
    for tensor, g in zip(tensors, group, strict=True):
        sums[g] += tensor.norm().item() ** 2
    return torch.tensor(sums)


def foreach_group_sq_norms(
    tensors: Sequence[Tensor], group: Sequence[int], num_groups: int
) -> Tensor:
    """``_foreach_norm`` in float32, then the sums per group: no host read."""
    norms = torch.stack(torch._foreach_norm(list(tensors), dtype=torch.float32))
    index = torch.tensor(group, device=norms.device)
    return norms.new_zeros(num_groups).index_add_(0, index, norms.square())


def loop_modulate_(grads: Sequence[Tensor], group: Sequence[int], weights: Tensor) -> None:
    """A multiplication by a host number per tensor."""
    for grad, g in zip(grads, group, strict=True):
        grad.mul_(weights[g].item())


def foreach_modulate_(grads: Sequence[Tensor], group: Sequence[int], weights: Tensor) -> None:
    """``_foreach_mul_`` with a device scalar per group."""
    for g in range(len(weights)):
        own = [grad for grad, owner in zip(grads, group, strict=True) if owner == g]
        if own:
            torch._foreach_mul_(own, weights[g])


def papers_scores(logits: Sequence[Tensor], targets: Tensor) -> list[Tensor]:
    """A softmax and a host read per sample, as OGM-GE's ``main.py`` is written."""
    return [
        sum(F.softmax(x, dim=1)[i][targets[i]] for i in range(len(x)))  # type: ignore[misc]
        for x in logits
    ]


def papers_ogm(
    encoders: Sequence[nn.Module], logits: Sequence[Tensor], targets: Tensor, alpha: float
) -> None:
    """OGM by a loop over samples, a host read for the ratio, and a loop over parameters."""
    first, second = papers_scores([x.detach() for x in logits], targets)
    ratio = (first / second).item()
    coefficients = [1.0, 1.0]
    if ratio > 1:
        coefficients[0] = 1 - torch.tanh(torch.tensor(alpha * ratio)).item()
    else:
        coefficients[1] = 1 - torch.tanh(torch.tensor(alpha / ratio)).item()
    for encoder, coefficient in zip(encoders, coefficients, strict=True):
        for p in encoder.parameters():
            if p.grad is not None:
                p.grad *= coefficient


def foreach_ogm(
    gradients: Sequence[list[Tensor]], logits: Sequence[Tensor], targets: Tensor, alpha: float
) -> None:
    """OGM without a host read: vectorised scores, one ``_foreach_mul_`` per modality."""
    probabilities = torch.stack([x.detach() for x in logits]).softmax(dim=2)
    index = targets[None, :, None].expand(len(logits), -1, 1)
    scores = probabilities.gather(2, index).mean((1, 2))
    rho = scores / scores.flip(0)
    weights = torch.where(rho > 1, 1 - torch.tanh(alpha * rho), 1.0)
    for grads, weight in zip(gradients, weights.unbind(), strict=True):
        torch._foreach_mul_(grads, weight)
