"""Plain PyTorch: the definition of every op. The other backends are compared with it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from modgrad.backends.elements import wide, with_noise
from modgrad.backends.fake import register
from modgrad.backends.layout import flat
from modgrad.backends.reference_updates import modulated_adam_ as modulated_adam_
from modgrad.backends.reference_updates import modulated_sgd_ as modulated_sgd_


def unusable(device: torch.device) -> str | None:
    return None


def group_sq_norms(tensors: Sequence[Tensor], group: Sequence[int], num_groups: int) -> Tensor:
    sums: list[list[Tensor]] = [[] for _ in range(num_groups)]
    for tensor, g in zip(tensors, group, strict=True):
        x = flat(tensor).double()
        sums[g].append(torch.dot(x, x))
    zero = tensors[0].new_zeros((), dtype=torch.float64)
    return torch.stack([torch.stack(s).sum() if s else zero for s in sums])


def modulate_(
    grads: Sequence[Tensor],
    group: Sequence[int],
    weights: Tensor,
    noise: Tensor | None = None,
    seed: Tensor | None = None,
) -> None:
    for index, (grad, g) in enumerate(zip(grads, group, strict=True)):
        x = flat(grad).to(wide(grad.dtype))
        scaled = x * weights[g].to(x.dtype)
        if noise is not None and seed is not None:
            scaled = with_noise(scaled, x, noise[g], seed, index)
        flat(grad).copy_(scaled)


def modality_scores(logits: Sequence[Tensor], targets: Tensor) -> Tensor:
    index = targets.long()[:, None]
    rows = [x.to(wide(x.dtype)).softmax(dim=1).gather(1, index) for x in logits]
    return torch.stack([p.double().mean().float() for p in rows])


def scale_backward(grads: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    return [
        (grad.to(wide(grad.dtype)) * weight.to(wide(grad.dtype))).to(grad.dtype)
        for grad, weight in zip(grads, weights.unbind(), strict=True)
    ]


def group_gram(
    grads: Sequence[Tensor],
    tensor: Sequence[int],
    loss: Sequence[int],
    group: Sequence[int],
    num_groups: int,
    num_losses: int,
) -> Tensor:
    by_tensor: dict[int, list[tuple[int, Tensor]]] = {}
    for grad, t, k in zip(grads, tensor, loss, strict=True):
        by_tensor.setdefault(t, []).append((k, flat(grad).double()))
    gram = grads[0].new_zeros(num_groups, num_losses, num_losses, dtype=torch.float64)
    for t, present in by_tensor.items():
        for k, x in present:
            for j, y in present:
                if k <= j:
                    gram[group[t], k, j] += torch.dot(x, y)
    return gram.triu() + gram.triu(1).transpose(1, 2)


def combine_(
    out: Sequence[Tensor],
    grads: Sequence[Tensor],
    tensor: Sequence[int],
    loss: Sequence[int],
    group: Sequence[int],
    weights: Tensor,
) -> None:
    sums = [torch.zeros_like(flat(x), dtype=wide(x.dtype)) for x in out]
    order = sorted(range(len(grads)), key=lambda i: (tensor[i], loss[i]))
    for i in order:
        sum_, weight = sums[tensor[i]], weights[group[tensor[i]], loss[i]]
        sum_ += flat(grads[i]).to(sum_.dtype) * weight.to(sum_.dtype)
    for x, sum_ in zip(out, sums, strict=True):
        flat(x).copy_(sum_)


_OPS = (
    group_sq_norms,
    modulate_,
    modality_scores,
    scale_backward,
    group_gram,
    combine_,
    modulated_sgd_,
    modulated_adam_,
)
register("reference", {op.__name__: op for op in _OPS})
